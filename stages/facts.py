"""Stage `facts`: read the facts, measure which of them the model knows, choose, and keep every reason."""

from pipeline import engine, noise
from pipeline.facts import choose, facts_to_frame
from pipeline.jobs import crew, set_up
from pipeline.params import Params
from pipeline.tables import write, write_json
from stages import _inputs, _jobs
from stages._run import run_stage


def main(params: Params) -> None:
    """The fact file to data/facts.parquet, and the embeddings' standard deviation to data/embedding_sd.json."""
    file = _jobs.candidates(params)
    job = _jobs.known(params, file)
    known = job.read(engine.run(job, _inputs.store(), crew(params)))
    chosen = choose(file.facts, known, params.facts.known, params.facts.count)
    write(facts_to_frame(file.facts, known, chosen, file.left_out), _inputs.DATA / "facts.parquet")
    # Over all facts of the file, not the chosen ones, so that the noise does not change with their number.
    sd = noise.embedding_sd(set_up(params), (fact.subject for fact in file.facts))
    write_json(
        {"embedding_sd": sd, "subjects": len({fact.subject for fact in file.facts})},
        _inputs.DATA / "embedding_sd.json",
    )


if __name__ == "__main__":
    run_stage("facts", main)
