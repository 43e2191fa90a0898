"""One file per command: `parser()` declares its arguments. None of them imports torch.

So `--help` and mistakes on the command line are answered before the command itself is imported.
"""
