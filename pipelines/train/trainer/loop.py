"""The training loop: plain PyTorch, since the speed and the memory of a step are what this project measures.

A plain loop rather than transformers.Trainer: the examples of an optimizer step stay fixed while micro-batches follow a token
budget, the output head runs on completion positions only, a run can stop between two micro-batches and go on to the same bits,
and importing Trainer alone takes as long as loading the model.
The loss of a step is the mean over all its learned tokens, so how it is cut into micro-batches does not change it.
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
SMALLEST_SCALE = 2.0**-14  # of float16's loss: below it not the scale overflows but the model


class Trainer:
    """One cell's run over its planned steps; every number it measures goes to the worker. Of several `ranks` each computes a part
    of every step and of every evaluation, and all of them know the whole's loss."""

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
        self.compute = self.zero.engine if self.zero else model  # what a batch is put through
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
        self._curve_every = 1  # steps
        self._peaks: list[dict[str, float]] = [{}] * self.ranks.count  # GB by column, of each rank, as last told
        self._best: Path | None = None  # where the best step's weights are, where early stopping asks for them

    def prepare(
        self, train: Sequence[Tokenized], earlier: Path | None = None, *, validation: Sequence[Tokenized] = ()
    ) -> None:
        """Plan the steps over `train`; then find out whether they fit and, of several learning rates, which is the best, or take
        over the checkpoint `earlier`. Rates are compared on `validation`, else on a slice of `train`, which is trained on after.

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
        """Train what was prepared; the loss on `held_out` is a point on the curve at the start, at intervals and at the end,
        and that on `validation` (a slice held back from train) beside it, which alone may end the run early. Where that is asked
        for, every interval is as the spec says; else those of a long run may be longer (`pace.curve_every`).

        Raises:
            DivergedError: a loss or a gradient is no longer finite, or the losses ended clearly higher than they began.
            StoppedError: SIGTERM came; the state after the last whole step is kept.
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
        """After how many steps the curve is measured again."""
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
        """What happens inside is no optimizer step; its time counts as `other_seconds`."""
        clock = Stopwatch()
        try:
            yield clock
        finally:
            self.tally.other_seconds += clock.total()

    def _probe(self) -> None:
        """Fail now rather than at the longest batch; weights, optimizer and random states are afterwards as before. With
        `fit_micro_batch` it says first what is to be tried if it fails, since a killed process says nothing."""
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
        """Choose the learning rate where the recipe names several; all else is afterwards as before."""
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
        self.meter = MemoryMeter()  # what it saw here is not the training's
        if not result.trials:
            self._do_without_search(f"{len(self._plan)} steps are too few to choose one by")
            return
        self.chosen = search.best(result.trials, near=halving.NEAR if search.is_auto(self.recipe) else 0.0)
        seconds = clock.total() + result.earlier_seconds
        self.worker.measure(search_seconds=seconds, **self.chosen.measured())
        self.worker.say(f"learning rate {self.chosen.rate:g} of {self.chosen.in_words()}")

    def _do_without_search(self, because: str) -> None:
        """Train with the default rate, and have the row say so."""
        self.worker.measure(**self.chosen.measured())
        self.worker.say(f"learning_rate: auto: {because}, so it is the default, {self.chosen.rate:g}")

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole training, without those of a search."""
        return len(self._plan)

    def loss_of_steps(self, plan: Sequence[list[Tokenized]], rate: float, judging: Sequence[Tokenized]) -> float:
        """The loss on `judged` after training `plan` with the peak rate `rate`; infinite where it diverges."""
        share_at = halving.rate_share if search.is_auto(self.recipe) else batches.learning_rate_share
        try:
            for step, examples in enumerate(plan):
                share = share_at(step, total=len(plan), warmup_share=self.recipe["warmup_share"])
                self.step_over(examples, rate * share)
            return self._eval_loss(judging)
        except DivergedError:
            return math.inf

    def reset_optimizer(self) -> None:
        """A new one that remembers nothing; gradients go too, and the loss's scale."""
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
        if tally.step == 0:
            with self._aside():
                first = self._eval_loss(self._held_out)
            checks.loss_is_sane(first, vocabulary=self.model.config.vocab_size)
            tally.first_eval_loss = first
            self._add_point(eval_loss=first)
        elif not tally.told:
            self._report_step()
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
        """Go back to the best step's weights, as transformers' `load_best_model_at_end` does."""
        if self._best is None:
            return
        best, last = self.tally.best_step, self.tally.step
        self.worker.say(
            f"kept are the weights of step {best}, the best on the slice held back (loss {self.tally.best:.4f}); the last step was "
            f"{last}"
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
        """Raises DivergedError, on all ranks alike, where training made the model worse rather than better. Only a held-out loss
        that rose costs the second look, at the first step's own examples, and it tells overfitting from divergence."""
        vocabulary = self.model.config.vocab_size
        first, last, learned = self.tally.first_eval_loss, self.tally.eval_loss, self.tally.first_loss
        if first is None or last is None or learned is None:
            return
        if checks.is_clearly_worse(first, last, vocabulary=vocabulary) and (
            (again := self._eval_loss(self._plan[0])) >= learned
        ):
            raise DivergedError(
                f"the loss on held-out records went from {first:,.2f} to {last:,.2f} nats per token (guessing among {vocabulary:,} "
                f"tokens gives {math.log(vocabulary):.2f}), that on the first step's examples from {learned:,.2f} to {again:,.2f}: "
                "lower learning_rate"
            )

    def _stops_early(self) -> bool:
        patience = self.recipe.get("early_stop_patience")
        if not patience or self.tally.since_best < patience:
            return False
        self.worker.measure(stopped_early=True)
        self.worker.say(
            f"no better on the slice held back for {patience} evaluations, the best was step {self.tally.best_step}: stopping "
            f"after step {self.tally.step}"
        )
        return True

    def _advance(self, examples: list[Tokenized]) -> None:
        """One optimizer step and its place in the tally."""
        tally = self.tally
        share = batches.learning_rate_share(tally.step, total=len(self._plan), warmup_share=self.recipe["warmup_share"])
        rate = self.chosen.rate * share
        clock = Stopwatch()
        loss = self.step_over(examples, rate)
        _synchronize(self.device)  # else the optimizer's part would be in the time of whatever comes next
        tally.loss, tally.rate, tally.told = loss, rate, False
        if tally.step == 0:
            tally.first_loss = loss
        size = sum(len(example) for example in examples)
        mine = clock.stopped()
        stopped = max(self.ranks.each(mine))  # while one rank is stopped the others wait for it
        tally.stopped_seconds += stopped
        tally.add(
            examples=len(examples),
            tokens=size,
            seconds=max(0.0, clock.total() + mine - stopped),
            first=not self._warm,
        )
        self._warm = True

    def _report_step(self) -> None:
        """The last step's point on the curve, with an evaluation where one is due."""
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
        """The row's memory columns. Of several ranks a peak is that of the device that needs most: what a device must have.
        `together`: all ranks are here and say theirs; else what the others said last counts."""
        summary: dict[str, Any] = self.meter.summary()
        host = max(summary[HOST], self.worker.report["measured"].get(HOST) or 0.0)  # that of loading, too
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
        """One optimizer step over `examples`, of which this rank computes its part; returns the whole's loss per learned token."""
        parts = self._parts(examples)
        learned = sum(example.learned for example in examples)
        return self.step(parts[self.ranks.rank], rate, learned=learned, idle=self._idle(parts))

    def _parts(self, examples: Sequence[Tokenized]) -> list[list[list[Tokenized]]]:
        """Each rank's micro-batches of `examples`."""
        size = self.recipe["micro_batch_tokens"]
        return batches.split_by_rank(examples, max_tokens=size, ranks=self.ranks.count, virtual=self._virtual)

    def _idle(self, parts: Sequence[list[list[Tokenized]]]) -> list[list[Tokenized]]:
        """What this rank computes for nothing, where weights are sharded and others have more micro-batches."""
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
        """One optimizer step over the micro-batches `groups`, of a step that learns `learned` tokens on all ranks (None: those of
        `groups`); returns its loss per learned token in nats. `idle` are computed too, but count for nothing."""
        self.model.train()
        set_rate(self.optimizer, rate)
        learned = learned or sum(example.learned for group in groups for example in group)
        summed: Any = torch.zeros((), dtype=torch.float64, device=self.device)
        batches_and_divisors = [*((group, learned) for group in groups), *((group, math.inf) for group in idle)]
        inputs = put_on(self.device, [group for group, _ in batches_and_divisors])
        for place, (batch, (_, divisor)) in enumerate(zip(inputs, batches_and_divisors, strict=True), start=1):
            if self._is_stopping():
                break
            with autocast(self.recipe, self.device):
                loss = step_loss(self.compute, batch, self._positions, self.device, learned=divisor)
            self._backward(loss, last=place == len(batches_and_divisors))
            summed += loss.detach()
        # no part of the loss that is shown, which is the same for every method; the ranks' gradients are summed
        if (penalty := moving_ranks.penalty(self.model)) is not None:
            self.scaler.scale(penalty / self.ranks.count).backward()
        summed = self._sum_over_ranks(summed)
        norm = self.zero.step() if self.zero else self._clip()
        # where a rank is alone this is a step's one look at the card: until here the host only hands out work
        total, norm = _numbers(summed, norm)
        # float16's loss is scaled up until gradients overflow; then the scaler leaves out the step and halves the scale
        if not (math.isfinite(total) and (math.isfinite(norm) or self._scale_overflows())):
            raise DivergedError(
                f"loss {total}, gradient norm {norm} after {self.tally.examples} examples: lower learning_rate"
            )
        if not self.zero:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self, loss: Any, *, last: bool) -> None:
        """`last`: no micro-batch of the step follows."""
        if self.zero:
            self.zero.backward(loss, last=last)
        else:
            self.scaler.scale(loss).backward()

    def _scale_overflows(self) -> bool:
        """Whether gradients that are not finite may come of the loss's scale alone."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE

    def _clip(self) -> torch.Tensor:
        """The gradients' norm before they are cut to the recipe's."""
        self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(list(self.named.values()), self.recipe["gradient_clip"])

    def _is_stopping(self) -> bool:
        """Whether to compute nothing more of this step: its end, where all ranks meet, then stops them together.

        Raises:
            StoppedError: SIGTERM came, and this process is alone, or all ranks are at the same micro-batch.
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
            StoppedError: SIGTERM came to one of them.
        """
        if self.ranks.count == 1:
            return list(numbers)
        stop_requests, *summed = self.ranks.sums([self.worker.asked_to_stop, *numbers])
        if stop_requests:
            raise StoppedError(STOPPED)
        return summed

    def _sum_over_ranks(self, loss: torch.Tensor) -> torch.Tensor | float:
        """The loss of the whole step; and the gradients become those of the whole step. Where a rank is alone they are that
        already, and the loss stays on its device."""
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
        """Mean loss per learned token on `examples`, in nats; its time and memory are not the training's."""
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
        """What trains, as this rank holds it; with ZeRO all of it, gathered on every rank."""
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
        if self.ranks.holder != self.ranks.rank:  # they are in the file of another rank
            grouped = {"random": self._random.tensors}
        named = {
            f"{group}/{name}": tensor
            for group, tensors_of_group in grouped.items()
            for name, tensor in tensors_of_group.items()
        }
        checkpoint.write(self.worker.folder, self.tally.step, named, state, self.ranks, self._best)

    def _keep_and_report(self) -> str:
        """Keep what is done when asked to stop, and say so."""
        if self.tally.step == 0:
            return "no step was done yet"
        try:
            with self._aside():
                self._keep()
        except checkpoint.DiskFullError as error:
            return str(error)
        return f"the next run goes on after step {self.tally.step}"

    def _resume(self, earlier: Path, train: Sequence[Tokenized]) -> None:
        """Take over the state of `earlier`: weights, optimizer, random states, batch order, sums, curve."""
        rank, holder = self.ranks.rank, self.ranks.holder
        state = checkpoint.read_state(earlier, rank)
        tokens = state.get("micro_batch_tokens", self.recipe["micro_batch_tokens"])  # as fitted to the memory then
        self.recipe = {**self.recipe, "micro_batch_tokens": tokens}
        self.worker.measure(micro_batch_tokens=tokens)
        tensors = checkpoint.read_tensors(earlier, "optimizer", holder)
        if self.zero:
            self._warm_up(train)
            weights = checkpoint.read_tensors(earlier, "weights", holder)
            self.zero.take_over(self.named, weights, tensors, state["tally"]["step"])
        else:
            checkpoint.copy_weights(earlier, self.named, holder)
            checkpoint.set_optimizer_state(self.optimizer, list(self.named.values()), tensors, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        by_name = {example.name: example for example in train}
        self._plan = [[by_name[name] for name in step] for step in state["order"]]
        self.tally = Tally(**state["tally"])
        if self.tally.best_step is not None:
            self._best = checkpoint.take_over_best(earlier, self.worker.folder, self.tally.best_step, self.ranks)
        if isinstance(self.recipe["learning_rate"], list):
            searched = state["search"]
            self.chosen = search.Chosen(searched["rate"], searched["tried"], searched["source"])
            self.worker.measure(search_seconds=searched["seconds"], **self.chosen.measured())
        self.meter.go_on(state["memory"], {} if rank else self.worker.spec["resume"]["peaks"])
        for row in checkpoint.read_curve(earlier):
            self.worker.point(row, quietly=True)
        self.worker.measure(**self.tally.measured())
        self.worker.say(f"going on after step {self.tally.step} of {len(self._plan)}")
        self._random = Random(checkpoint.read_tensors(earlier, "random", rank), state["random"])
        self._random.set()

    def _warm_up(self, train: Sequence[Tokenized]) -> None:
        """A step that changes nothing, since DeepSpeed makes room for what an optimizer remembers during its first one."""
        with head_on_positions(self.model) as self._positions:
            self.step([[min(train, key=len)]], 0.0)


def _numbers(*scalars: Any) -> list[float]:
    """The values of scalars, also of such whose parts lie on several ranks; a device is read once."""
    full = [scalar.full_tensor() if hasattr(scalar, "full_tensor") else scalar for scalar in scalars]
    tensors = [scalar.double() for scalar in full if isinstance(scalar, torch.Tensor)]
    values = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(values) if isinstance(scalar, torch.Tensor) else scalar for scalar in full]


def _synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was handed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_fitted_size(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the micro-batches to take where an earlier process of the attempt could not take its own."""
    fit = read_json(folder / FIT)
    return {**recipe, "micro_batch_tokens": fit["micro_batch_tokens"]} if fit else recipe
