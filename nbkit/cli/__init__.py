"""The command line: declarations and printing. Every verb imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

try:
    import click

    from nbkit import __version__
    from nbkit.cli import box, demo, files, fit, kernel, machine, runs, ssh, tunnel, view, work
    from nbkit.cli._base import Commands
except KeyboardInterrupt:  # Ctrl-C right away: the same end as later, no traceback
    raise SystemExit(130) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nbkit")
def main() -> None:
    """Fine-tune language models from notebooks, here or on a remote GPU.

    \b
    Examples:
      nbkit check            what this machine has, and what fits on it
      nbkit doctor           what is wrong here, and how to mend it
      nbkit fit Mistral-7B   which ways of training it fit, here or on a card
      nbkit demo             four notebooks, a real 4-bit model, base against tuned
      nbkit runs             what was trained, the newest first
      nbkit watch            follow the newest run from a terminal
      nbkit compare A B      two runs, or the notebooks they stand in
      nbkit stop 20261124    finish the step, save, end
      nbkit hosts            the GPU boxes of ~/.ssh/config: which answer, their GPUs and free memory
      nbkit doctor gpu-box   the path to a box, hop by hop, and what is wrong there
      nbkit tunnel gpu-box   its Jupyter and its kernels, here
      nbkit kernel add gpu-box            its Python as a kernel of the JupyterLab here
      nbkit run train.ipynb --on gpu-box  there, without a connection; shown here

    \b
    Completion of verbs, options and hosts, in ~/.bashrc (zsh and fish: zsh_source, fish_source):
      eval "$(_NBKIT_COMPLETE=bash_source nbkit)"

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 authentication or host key, 5 the doctor found a blocker,
    130 interrupted.
    """


for _verbs in (machine, fit, runs, work, view, box, ssh, tunnel, kernel, files, demo):
    for _verb in _verbs.VERBS:
        main.add_command(_verb)
