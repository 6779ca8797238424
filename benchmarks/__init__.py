"""What the speed, memory and scale figures are measured with: `make bench` prints one JSON object a line."""
