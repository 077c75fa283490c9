"""Makes `python -m sltt_bench` the same as `sltt-bench`."""

from sltt_bench.command_line.cli import main

if __name__ == "__main__":
    main()
