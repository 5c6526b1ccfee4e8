"""Stage `facts`: read the facts, measure which of them the model knows, choose, and keep every reason."""

from pathlib import Path

from pipeline import engine, noise
from pipeline.facts import choose, facts_to_frame, of_relations, read_fact_file, trim
from pipeline.jobs import KnownJob, crew, set_up
from pipeline.params import Params
from pipeline.tables import write, write_json
from stages import _inputs
from stages._run import run_stage


def main(params: Params) -> None:
    """The fact file to data/facts.parquet, and the embeddings' standard deviation to data/embedding_sd.json."""
    whole = read_fact_file(params.facts.source, Path(params.facts.path), params.seed)
    file = of_relations(whole, params.facts.relations)
    facts = trim(file.facts, params.facts.max_paraphrases, params.facts.max_neighborhood)
    job = KnownJob(params, _inputs.model(params), tuple(facts))
    known = job.read(engine.run(job, _inputs.store(), crew(params)))
    chosen = choose(facts, known, params.facts.known, params.facts.count)
    write(facts_to_frame(facts, known, chosen, file.left_out), _inputs.DATA / "facts.parquet")
    # Over all facts of the file, not the chosen ones, so that the noise does not change with their number.
    sd = noise.embedding_sd(set_up(params), (fact.subject for fact in facts))
    write_json(
        {"embedding_sd": sd, "subjects": len({fact.subject for fact in facts})},
        _inputs.DATA / "embedding_sd.json",
    )


if __name__ == "__main__":
    run_stage("facts", main)
