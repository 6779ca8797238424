"""The training loop: plain PyTorch, since the speed and the memory of a step are what this project
measures.

It replaces transformers.Trainer for four reasons. The examples of an optimizer step stay fixed
while micro-batches follow a token budget. The output head runs on completion positions only. A run
can stop between two micro-batches and resume to the same bits. Importing Trainer alone takes as
long as loading the model.

The loss of a step is the mean over all its learned tokens, so the cut into micro-batches does not
change it.
"""
# ruff: noqa: TID253

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.lake.files import read_json
from pipelines.runs.clock import Stopwatch
from pipelines.runs.status import FIT, SMALLER
from pipelines.runs.worker import STOPPED, DivergedError, StoppedError, Worker
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import batches, checkpoint, checks, halving, moving_ranks, probe, search
from pipelines.train.trainer.checkpoint import Random
from pipelines.train.trainer.devices import paged, sharding
from pipelines.train.trainer.devices.ranks import ZERO_STAGES, Ranks
from pipelines.train.trainer.devices.zero import Zero
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, put_on, step_loss, token_losses
from pipelines.train.trainer.measure.memory import HOST, PEAKS, MemoryMeter, peak_bytes, reset_peaks
from pipelines.train.trainer.measure.tally import Tally
from pipelines.train.trainer.optimizers import make_optimizer, set_rate
from pipelines.train.trainer.pace import CheckpointPace, curve_every
from pipelines.train.trainer.precision import autocast, make_scaler

Recipe = dict[str, Any]
# float16's loss scale: at or below this value the model overflows, not the scaling.
SMALLEST_SCALE = 2.0**-14


class Trainer:
    """One cell's run over its planned steps; it reports every measured number to the worker.

    With several `ranks`, each rank computes a part of every step and evaluation, and all ranks know
    the total loss.
    """

    def __init__(
        self, worker: Worker, model: Any, recipe: Recipe, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.worker = worker
        self.ranks = ranks or Ranks()
        self.recipe = _with_fitted_size(recipe, worker.folder)
        self.device = device
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.model = model
        self.zero = Zero(model, worker.spec, device, self.ranks) if self.ranks.sharding in ZERO_STAGES else None
        # The module that a batch goes through.
        self.compute = self.zero.engine if self.zero else model
        self.optimizer = self.zero.optimizer if self.zero else make_optimizer(model, recipe)
        self.scaler = make_scaler(recipe, device)
        self.chosen = search.before_search(recipe)
        self.meter = MemoryMeter()
        self.tally = Tally()
        self._plan: list[list[Tokenized]] = []
        self._virtual = traits_of(recipe).virtual_tokens
        self._random = Random.now()
        self._warm = False
        self._positions: list[torch.Tensor] = []
        self._held_out: Sequence[Tokenized] = ()
        self._validation: Sequence[Tokenized] = ()
        self._pace = CheckpointPace(worker.spec)
        # Optimizer steps between two points of the held-out curve.
        self._curve_every = 1
        # Each rank's latest peaks in GB, by column.
        self._peaks: list[dict[str, float]] = [{}] * self.ranks.count
        # The folder of the best step's weights; only early stopping sets it.
        self._best: Path | None = None

    def prepare(
        self, train: Sequence[Tokenized], earlier: Path | None = None, *, validation: Sequence[Tokenized] = ()
    ) -> None:
        """Plan the steps over `train`, then resume from the checkpoint `earlier`, or probe and
        search.

        The probe tests whether the steps fit into memory. The search chooses among several learning
        rates. It compares them on `validation`, else on a slice of `train`, which the run then
        trains on as well.

        Raises:
            DivergedError, StoppedError: as `train` does.
        """
        recipe = self.recipe
        self._plan = batches.steps(
            train, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=self.worker.spec["seed"]
        )
        self.worker.measure(steps=len(self._plan), micro_batch_tokens=recipe["micro_batch_tokens"])
        moving_ranks.plan(self.model, len(self._plan))
        self.worker.listen()
        if earlier:
            self._resume(earlier, train)
        else:
            self._probe()
            self._search(train, validation)

    def train(self, held_out: Sequence[Tokenized], validation: Sequence[Tokenized] = ()) -> None:
        """Train the prepared steps.

        The curve gets the loss on `held_out` at the start, at intervals and at the end, and beside
        it the loss on `validation`, a slice held back from train. Only the validation loss may end
        the run early. With a validation slice the intervals are those of the spec; without one a
        long run may have longer ones (`pace.curve_every`).

        Raises:
            DivergedError: a loss or a gradient is not finite, or the losses ended clearly higher
                than they began.
            StoppedError: SIGTERM came; a checkpoint holds the state after the last whole step.
            DiskFullError: a checkpoint could not be written.
        """
        self._held_out, self._validation = held_out, validation
        self._curve_every = self.worker.spec["eval_every_steps"] if validation else self._curve_interval()
        self._pace = CheckpointPace(self.worker.spec)
        self.meter.start()
        try:
            with head_on_positions(self.model) as self._positions:
                self._run()
        except StoppedError as stop:
            raise StoppedError(f"{stop}; {self._keep_and_report()}") from None
        finally:
            self.meter.stop()
            self._measure_memory()
            self.worker.measure(other_seconds=self.tally.other_seconds)

    def _curve_interval(self) -> int:
        """Optimizer steps between two measurements of the held-out loss."""
        configured = self.worker.spec["eval_every_steps"]
        interval = curve_every(self._plan, self._held_out, configured)
        if interval > configured:
            self.worker.say(
                f"the held-out loss is measured every {interval} steps, not every {configured}, "
                "which would take more than 5 % of the time"
            )
        return interval

    @contextmanager
    def _aside(self) -> Iterator[Stopwatch]:
        """Count the time inside as `other_seconds`: it belongs to no optimizer step."""
        clock = Stopwatch()
        try:
            yield clock
        finally:
            self.tally.other_seconds += clock.total()

    def _probe(self) -> None:
        """Fail now rather than at the longest batch. Weights, optimizer and random states end as
        they were.

        With `fit_micro_batch` it first reports the next smaller size to try, since a killed process
        reports nothing.
        """
        if self.recipe.get("fit_micro_batch"):
            size = self.recipe["micro_batch_tokens"]
            cut = {"max_tokens": size, "ranks": self.ranks.count, "virtual": self._virtual}
            self.worker.measure(**{SMALLER: batches.smaller(self._plan, **cut)})
        self.worker.phase("probe")
        clock, before = Stopwatch(), Random.now()
        reset_peaks()
        worst = batches.heaviest(self._plan, self.model.config, self.recipe, ranks=self.ranks.count)
        try:
            with head_on_positions(self.model) as self._positions:
                probe.probe(self, worst)
        finally:
            self.worker.measure(probe_seconds=clock.total(), probe_peak_memory_gb=peak_bytes() / 1e9)
        self.worker.measure(probe_peak_memory_gb=max(self.ranks.each(peak_bytes() / 1e9)))
        before.set()

    def _search(self, train: Sequence[Tokenized], validation: Sequence[Tokenized]) -> None:
        """Choose the learning rate if the recipe names several; everything else ends as it was."""
        if not isinstance(self.recipe["learning_rate"], list):
            return
        if self.zero:
            self._do_without_search("ZeRO cannot go back to the weights of the start")
            return
        self.worker.phase("search")
        clock, before = Stopwatch(), Random.now()
        with head_on_positions(self.model) as self._positions:
            result = search.search(self, *search.hold_back(train, validation, self.recipe))
        before.set()
        # The search's memory is not the training's.
        self.meter = MemoryMeter()
        if not result.trials:
            self._do_without_search(f"{len(self._plan)} steps are too few to choose one by")
            return
        self.chosen = search.best(result.trials, near=halving.NEAR if search.is_auto(self.recipe) else 0.0)
        seconds = clock.total() + result.earlier_seconds
        self.worker.measure(search_seconds=seconds, **self.chosen.measured())
        self.worker.say(f"learning rate {self.chosen.rate:g} of {self.chosen.in_words()}")

    def _do_without_search(self, because: str) -> None:
        """Train with the default rate, and report that to the row and the log."""
        self.worker.measure(**self.chosen.measured())
        self.worker.say(f"learning_rate: auto: {because}, so it is the default, {self.chosen.rate:g}")

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the training, without those of a search."""
        return len(self._plan)

    def loss_of_steps(self, plan: Sequence[list[Tokenized]], rate: float, judging: Sequence[Tokenized]) -> float:
        """The loss on `judging` after training `plan` with the peak rate `rate`; infinite if
        training diverges."""
        share_at = halving.rate_share if search.is_auto(self.recipe) else batches.learning_rate_share
        try:
            for step, examples in enumerate(plan):
                share = share_at(step, total=len(plan), warmup_share=self.recipe["warmup_share"])
                self.step_over(examples, rate * share)
            return self._eval_loss(judging)
        except DivergedError:
            return math.inf

    def reset_optimizer(self) -> None:
        """Drop the optimizer's state, the gradients and the loss scale."""
        if self.zero:
            self.zero.forget()
            return
        self.optimizer.zero_grad(set_to_none=True)
        if paged.is_paged(self.optimizer):
            paged.forget(self.optimizer)
        else:
            self.optimizer = make_optimizer(self.model, self.recipe)
        self.scaler = make_scaler(self.recipe, self.device)

    def _run(self) -> None:
        tally = self.tally
        # The curve's first point: the loss before any step. A resumed run adds the point that its
        # stop prevented.
        if tally.step == 0:
            with self._aside():
                first = self._eval_loss(self._held_out)
            checks.loss_is_sane(first, vocabulary=self.model.config.vocab_size)
            tally.first_eval_loss = first
            self._add_point(eval_loss=first)
        elif not tally.told:
            self._report_step()

        # The random states are noted around each step: a stop inside a step returns to the state
        # before it.
        for examples in self._plan[tally.step :]:
            if self._stops_early():
                break
            self._random = Random.now()
            self._advance(examples)
            self._random = Random.now()
            self._report_step()
            if tally.step < len(self._plan) and self._checkpoint_is_due():
                with self._aside() as clock:
                    self._keep()
                self._pace.written(clock.total())

        with self._aside():
            self._load_best()
            self._require_convergence()

    def _checkpoint_is_due(self) -> bool:
        due = self._pace.is_due(self.tally.step)
        return self.ranks.as_first_says(due) if self._pace.by_time else due

    def _load_best(self) -> None:
        """Load the best step's weights, as transformers' `load_best_model_at_end` does."""
        if self._best is None:
            return
        best, last = self.tally.best_step, self.tally.step
        self.worker.say(
            f"keeping the weights of step {best}, the best on the slice held back (loss {self.tally.best:.4f}); "
            f"the last step was {last}"
        )
        if best == last:
            return
        with self.meter.apart():
            holder = self.ranks.holder
            if self.zero:
                self.zero.set_weights(self.named, checkpoint.read_tensors(self._best, "weights", holder))
            else:
                checkpoint.copy_weights(self._best, self.named, holder)
        self.tally.eval_loss = self.tally.best_eval_loss

    def _require_convergence(self) -> None:
        """Raises DivergedError, on all ranks alike, if training made the model worse.

        A held-out loss that rose may be overfitting. Only then the loss on the first step's own
        examples is measured as well: after overfitting it is lower than it was, after divergence it
        is not.
        """
        vocabulary = self.model.config.vocab_size
        first, last, learned = self.tally.first_eval_loss, self.tally.eval_loss, self.tally.first_loss
        if first is None or last is None or learned is None:
            return
        if checks.is_clearly_worse(first, last, vocabulary=vocabulary) and (
            (again := self._eval_loss(self._plan[0])) >= learned
        ):
            raise DivergedError(
                f"the loss on held-out records went from {first:,.2f} to {last:,.2f} nats per token (guessing among "
                f"{vocabulary:,} tokens gives {math.log(vocabulary):.2f}), that on the first step's examples from "
                f"{learned:,.2f} to {again:,.2f}: lower learning_rate"
            )

    def _stops_early(self) -> bool:
        patience = self.recipe.get("early_stop_patience")
        if not patience or self.tally.since_best < patience:
            return False
        self.worker.measure(stopped_early=True)
        self.worker.say(
            f"no better on the slice held back for {patience} evaluations, the best was step {self.tally.best_step}: "
            f"stopping after step {self.tally.step}"
        )
        return True

    def _advance(self, examples: list[Tokenized]) -> None:
        """Take one optimizer step and count it in the tally."""
        tally = self.tally
        share = batches.learning_rate_share(tally.step, total=len(self._plan), warmup_share=self.recipe["warmup_share"])
        rate = self.chosen.rate * share
        clock = Stopwatch()
        loss = self.step_over(examples, rate)
        # Without this, the optimizer's time would count for whatever runs next.
        _synchronize(self.device)
        tally.loss, tally.rate, tally.told = loss, rate, False
        if tally.step == 0:
            tally.first_loss = loss
        size = sum(len(example) for example in examples)
        mine = clock.stopped()
        # While one rank stands still, the others wait for it: the longest standstill counts for
        # all.
        stopped = max(self.ranks.each(mine))
        tally.stopped_seconds += stopped
        tally.add(
            examples=len(examples),
            tokens=size,
            seconds=max(0.0, clock.total() + mine - stopped),
            first=not self._warm,
        )
        self._warm = True

    def _report_step(self) -> None:
        """Add the last step's point to the curve, with an evaluation if one is due."""
        step = self.tally.step
        due = step == len(self._plan) or step % self._curve_every == 0
        with self._aside():
            validation_loss = self._eval_loss(self._validation) if due and self._validation else None
            eval_loss = self._eval_loss(self._held_out) if due else None
        if due:
            self.tally.eval_loss = eval_loss
        self._add_point(eval_loss=eval_loss, validation_loss=validation_loss)
        if validation_loss is not None and self.tally.note(validation_loss):
            with self._aside():
                self._keep_best()
        self.tally.told = True
        self.worker.measure(**self.tally.measured())
        self._measure_memory(together=True)
        self.worker.save()

    def _measure_memory(self, *, together: bool = False) -> None:
        """Report the row's memory columns.

        With several ranks a peak is the largest of all devices: the memory that each device must
        have. `together`: all ranks call this now and exchange their peaks; otherwise their latest
        ones count.
        """
        summary: dict[str, Any] = self.meter.summary()
        # The host's peak includes that of loading.
        host = max(summary[HOST], self.worker.report["measured"].get(HOST) or 0.0)
        pages = paged.pageable_bytes(self.optimizer)
        summary |= {"host_peak_memory_gb": host, "pageable_gb": None if pages is None else pages / 1e9}
        if self.ranks.count > 1:
            summary |= self._most_of_ranks(summary, together=together)
            each = [peaks.get("peak_memory_gb", 0.0) for peaks in self._peaks]
            per_device = json.dumps([round(peak, 4) for peak in each])
            summary |= {"memory_in_all_gb": sum(each), "memory_per_device_gb": per_device}
        self.worker.measure(**summary)

    def _most_of_ranks(self, summary: Mapping[str, Any], *, together: bool) -> dict[str, float]:
        own = {name: summary[name] for name in PEAKS if summary[name] is not None}
        if together:
            self._peaks = [dict(zip(own, peaks, strict=True)) for peaks in self.ranks.all_of(list(own.values()))]
        self._peaks[self.ranks.rank] = own
        return {name: max(peaks.get(name, 0.0) for peaks in self._peaks) for name in own}

    def step_over(self, examples: list[Tokenized], rate: float) -> float:
        """One optimizer step over `examples`, of which this rank computes its part.

        Returns the loss of all ranks per learned token, in nats.
        """
        parts = self._parts(examples)
        learned = sum(example.learned for example in examples)
        return self.step(parts[self.ranks.rank], rate, learned=learned, idle=self._idle(parts))

    def _parts(self, examples: Sequence[Tokenized]) -> list[list[list[Tokenized]]]:
        """Each rank's micro-batches of `examples`."""
        size = self.recipe["micro_batch_tokens"]
        return batches.split_by_rank(examples, max_tokens=size, ranks=self.ranks.count, virtual=self._virtual)

    def _idle(self, parts: Sequence[list[list[Tokenized]]]) -> list[list[Tokenized]]:
        """Filler micro-batches, so that all ranks of a sharded model make equally many passes."""
        if not self.ranks.sharded:
            return []
        missing = max(map(len, parts)) - len(parts[self.ranks.rank])
        shortest = min((example for part in parts for batch in part for example in batch), key=len)
        return [[shortest]] * missing

    def step(
        self,
        groups: list[list[Tokenized]],
        rate: float,
        *,
        learned: int | None = None,
        idle: Sequence[list[Tokenized]] = (),
    ) -> float:
        """One optimizer step over the micro-batches `groups`; returns its loss per learned token in
        nats.

        `learned` is the number of tokens that the step learns on all ranks; None means those of
        `groups`. The micro-batches of `idle` are computed too, but do not count.

        Raises:
            DivergedError: the loss or the gradient is not finite.
            StoppedError: SIGTERM came.
        """
        # An idle micro-batch's loss is divided by infinity, so its gradient is zero.
        self.model.train()
        set_rate(self.optimizer, rate)
        learned = learned or sum(example.learned for group in groups for example in group)
        summed: Any = torch.zeros((), dtype=torch.float64, device=self.device)
        batches_and_divisors = [*((group, learned) for group in groups), *((group, math.inf) for group in idle)]
        inputs = put_on(self.device, [group for group, _ in batches_and_divisors])

        # Forward and backward, one micro-batch at a time. The loss stays on the device, so the host
        # never waits.
        for place, (batch, (_, divisor)) in enumerate(zip(inputs, batches_and_divisors, strict=True), start=1):
            if self._is_stopping():
                break
            with autocast(self.recipe, self.device):
                loss = step_loss(self.compute, batch, self._positions, self.device, learned=divisor)
            self._backward(loss, last=place == len(batches_and_divisors))
            summed += loss.detach()

        # AdaLoRA's penalty has gradients but no part in the reported loss, which is the same for
        # every method. The ranks' gradients are summed, so each rank adds its share of the penalty.
        if (penalty := moving_ranks.penalty(self.model)) is not None:
            self.scaler.scale(penalty / self.ranks.count).backward()

        # Loss and gradients of all ranks, then the gradient's norm before clipping. A process
        # without other ranks reads from the card only here; until here the host only hands out
        # work.
        summed = self._sum_over_ranks(summed)
        norm = self.zero.step() if self.zero else self._clip()
        total, norm = _numbers(summed, norm)

        # float16's loss is scaled up until gradients overflow; then the scaler skips the step and
        # halves the scale.
        if not (math.isfinite(total) and (math.isfinite(norm) or self._scale_overflows())):
            raise DivergedError(
                f"loss {total}, gradient norm {norm} after {self.tally.examples} examples: lower learning_rate"
            )

        # DeepSpeed has taken its step above, where it clipped.
        if not self.zero:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self, loss: Any, *, last: bool) -> None:
        """Add the gradients of `loss`; `last`: this is the step's last micro-batch."""
        if self.zero:
            self.zero.backward(loss, last=last)
        else:
            self.scaler.scale(loss).backward()

    def _scale_overflows(self) -> bool:
        """Whether the loss scale alone may have made the gradients infinite."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE

    def _clip(self) -> torch.Tensor:
        """Clip the gradients to the recipe's norm; returns their norm before."""
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(list(self.named.values()), self.recipe["gradient_clip"])

    def _is_stopping(self) -> bool:
        """Whether to skip the rest of this step: all ranks meet at its end and stop there together.

        Raises:
            StoppedError: SIGTERM came, and there are no other ranks or all are at the same
                micro-batch.
        """
        if self.ranks.count == 1:
            self.worker.stop_if_asked()
        elif self.ranks.sharded:
            self._sums([])
            return False
        return self.worker.asked_to_stop

    def _sums(self, numbers: Sequence[float]) -> list[float]:
        """Each of `numbers` summed over the ranks.

        Raises:
            StoppedError: SIGTERM came to any of them.
        """
        if self.ranks.count == 1:
            return list(numbers)
        stop_requests, *summed = self.ranks.sums([self.worker.asked_to_stop, *numbers])
        if stop_requests:
            raise StoppedError(STOPPED)
        return summed

    def _sum_over_ranks(self, loss: torch.Tensor) -> torch.Tensor | float:
        """Sum the loss and, in place, the gradients over the ranks.

        Without other ranks nothing changes, and the loss stays on its device.
        """
        if self.ranks.count == 1:
            return loss
        parameters = list(self.named.values())
        total, *contributions = self._sums([loss.item(), *(parameter.grad is not None for parameter in parameters)])
        if not self.ranks.sharded:
            self.ranks.sum_gradients(
                [p for p, contributed in zip(parameters, contributions, strict=True) if contributed]
            )
        return total

    def _eval_loss(self, examples: Sequence[Tokenized]) -> float:
        """Mean loss per learned token on `examples`, in nats. Its memory does not count as the
        training's."""
        self.model.eval()
        summed, learned = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        parts = self._parts(examples)
        mine = parts[self.ranks.rank]
        with self.meter.apart(), torch.no_grad(), autocast(self.recipe, self.device):
            for place, batch in enumerate((*mine, *self._idle(parts))):
                if self._is_stopping():
                    break
                losses = token_losses(self.compute, batch, self._positions, self.device)
                if place < len(mine):
                    summed, learned = summed + losses.double().sum(), learned + len(losses)
        sharding.put_away(self.model)
        total, learned = self._sums([summed.item(), learned])
        if not math.isfinite(total):
            raise DivergedError(f"the loss on held-out records is {total}: lower learning_rate")
        return total / learned

    def _add_point(self, *, eval_loss: float | None, validation_loss: float | None = None) -> None:
        tally = self.tally
        self.worker.point(
            {
                "step": tally.step,
                "steps": len(self._plan),
                "examples": tally.examples,
                "train_loss": tally.loss,
                "eval_loss": eval_loss,
                "validation_loss": validation_loss,
                "learning_rate": tally.rate,
                "tokens_per_second": tally.speed,
                "elapsed_seconds": tally.seconds,
                **self.meter.now(),
            }
        )

    def _weights(self) -> Mapping[str, torch.Tensor]:
        """The trainable weights as this rank holds them; with ZeRO all of them, gathered on every
        rank."""
        return self.zero.weights(self.named) if self.zero else self.named

    def _keep_best(self) -> None:
        """Write the weights of the best step so far."""
        step, weights = self.tally.step, self._weights()
        own_weights = weights if self.ranks.holder == self.ranks.rank else {}
        self._best = checkpoint.write_best(self.worker.folder, step, own_weights, self.ranks)

    def _keep(self) -> None:
        """Write a checkpoint of the state after the last whole step."""
        weights = self._weights()
        if self.zero:
            tensors, numbers = self.zero.states(self.named), {}
        else:
            tensors, numbers = checkpoint.optimizer_state(self.optimizer, list(self.named.values()))
        state = {
            "tally": asdict(self.tally),
            "micro_batch_tokens": self.recipe["micro_batch_tokens"],
            "order": [[example.name for example in step] for step in self._plan],
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
            "random": self._random.numbers,
            "memory": self.meter.state(),
            "search": {
                "rate": self.chosen.rate,
                "tried": self.chosen.tried,
                "source": self.chosen.source,
                "seconds": self.worker.report["measured"].get("search_seconds"),
            },
            "versions": self.worker.report["versions"],
        }
        grouped = {"weights": weights, "optimizer": tensors, "random": self._random.tensors}
        # Another rank's file holds the weights and the optimizer's state.
        if self.ranks.holder != self.ranks.rank:
            grouped = {"random": self._random.tensors}
        named = {
            f"{group}/{name}": tensor
            for group, tensors_of_group in grouped.items()
            for name, tensor in tensors_of_group.items()
        }
        checkpoint.write(self.worker.folder, self.tally.step, named, state, self.ranks, self._best)

    def _keep_and_report(self) -> str:
        """Write a checkpoint before stopping; returns what the message says of it."""
        if self.tally.step == 0:
            return "no step was done yet"
        try:
            with self._aside():
                self._keep()
        except checkpoint.DiskFullError as error:
            return str(error)
        return f"the next run goes on after step {self.tally.step}"

    def _resume(self, earlier: Path, train: Sequence[Tokenized]) -> None:
        """Resume from `earlier`: weights, optimizer, random states, batch order, sums and curve."""
        rank, holder = self.ranks.rank, self.ranks.holder
        state = checkpoint.read_state(earlier, rank)
        # The size that was fitted to the memory then. Another size would give other bits.
        tokens = state.get("micro_batch_tokens", self.recipe["micro_batch_tokens"])
        self.recipe = {**self.recipe, "micro_batch_tokens": tokens}
        self.worker.measure(micro_batch_tokens=tokens)

        # Weights and the optimizer's state. DeepSpeed needs a first step before it can take them
        # over.
        tensors = checkpoint.read_tensors(earlier, "optimizer", holder)
        if self.zero:
            self._warm_up(train)
            weights = checkpoint.read_tensors(earlier, "weights", holder)
            self.zero.take_over(self.named, weights, tensors, state["tally"]["step"])
        else:
            checkpoint.copy_weights(earlier, self.named, holder)
            checkpoint.set_optimizer_state(self.optimizer, list(self.named.values()), tensors, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

        # The order of the examples, the sums so far, and the best step's weights.
        by_name = {example.name: example for example in train}
        self._plan = [[by_name[name] for name in step] for step in state["order"]]
        self.tally = Tally(**state["tally"])
        if self.tally.best_step is not None:
            self._best = checkpoint.take_over_best(earlier, self.worker.folder, self.tally.best_step, self.ranks)

        # What the search chose, and what the meter and the curve have seen.
        if isinstance(self.recipe["learning_rate"], list):
            searched = state["search"]
            self.chosen = search.Chosen(searched["rate"], searched["tried"], searched["source"])
            self.worker.measure(search_seconds=searched["seconds"], **self.chosen.measured())
        self.meter.go_on(state["memory"], {} if rank else self.worker.spec["resume"]["peaks"])
        for row in checkpoint.read_curve(earlier):
            self.worker.point(row, quietly=True)
        self.worker.measure(**self.tally.measured())
        self.worker.say(f"going on after step {self.tally.step} of {len(self._plan)}")

        # Last, since everything above may draw random numbers.
        self._random = Random(checkpoint.read_tensors(earlier, "random", rank), state["random"])
        self._random.set()

    def _warm_up(self, train: Sequence[Tokenized]) -> None:
        """Take a step that changes nothing: DeepSpeed allocates the optimizer's states during its
        first step."""
        with head_on_positions(self.model) as self._positions:
            self.step([[min(train, key=len)]], 0.0)


def _numbers(*scalars: Any) -> list[float]:
    """The values of scalars, sharded ones included; all tensors are read from the device at
    once."""
    full = [scalar.full_tensor() if hasattr(scalar, "full_tensor") else scalar for scalar in scalars]
    tensors = [scalar.double() for scalar in full if isinstance(scalar, torch.Tensor)]
    values = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(values) if isinstance(scalar, torch.Tensor) else scalar for scalar in full]


def _synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_fitted_size(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe, with the smaller micro-batches of FIT if an earlier process of the attempt ran
    out of memory."""
    fit = read_json(folder / FIT)
    return {**recipe, "micro_batch_tokens": fit["micro_batch_tokens"]} if fit else recipe
