"""Cluster facts for tests, and what resolving a spec's resources with them says."""

from ratc import compiler, facts, layers
from ratc.compiler import File
from tests.places import ROOT

EXAMPLES = ROOT / "specs" / "clusters"
SPEC = "experiment_name: x\ndata: {data_dir: d}\ntraining: {batch_size: 1}\nresources:\n"


def cluster(text, name="clusters/ours.yaml"):
    """The facts in a text, which must be right."""
    read, found = compiler.read_cluster(File(name, text.encode()))
    assert read is not None, found
    return read


def example(scheduler):
    """The shipped example of a scheduler."""
    return cluster((EXAMPLES / f"example-{scheduler}.yaml").read_text(), f"example-{scheduler}.yaml")


def settings(lines, *options):
    """The settings of a spec whose `resources` hold these lines."""
    text = SPEC + "".join(f"  {line}\n" for line in ["cluster: it", *lines])
    overrides = [layers.from_assignment(option) for option in options]
    checked, found = compiler.analyse(compiler.Inputs(File("spec.yaml", text.encode()), (), overrides))
    assert checked is not None, found
    return checked


def resolve(lines, read, target="slurm", *options):
    """Hardware facts of a spec on a cluster, and what was found."""
    return facts.hardware(settings(lines, *options), None, None, read, target)


def line(span):
    """The text of the line that a span points at."""
    return span.source.line(span.line).strip()


WALL = 'walltime: "01:00:00"'
