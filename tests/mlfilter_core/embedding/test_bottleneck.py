from mlfilter_core.embedding.bottleneck import advice, bottleneck


def test_the_bottleneck_is_the_stage_that_waited_least() -> None:
    assert bottleneck({"reading": 3.0, "tokenizing": 2.0, "encoding": 0.5}) == "encoding"
    assert bottleneck({}) is None


def test_where_the_encoder_waits_for_the_tokenizer_the_cores_are_the_cure() -> None:
    said = advice({"reading": 9.0, "tokenizing": 0.5, "encoding": 4.0, "writing": 9.5}, 10.0)
    assert said.startswith("the encoder waited 40 % of the time, mostly for tokens: give each worker more cores")
    assert "slurm_settings.cpus_per_task" in said


def test_where_something_else_is_the_bottleneck_there_is_nothing_to_say() -> None:
    assert advice({"reading": 0.5, "tokenizing": 2.0, "encoding": 8.0, "writing": 9.5}, 10.0) == ""
    assert advice({"reading": 9.0, "tokenizing": 2.0, "encoding": 0.1, "writing": 9.5}, 10.0) == ""
    assert advice({"reading": 9.0, "tokenizing": 0.3, "encoding": 0.4, "writing": 9.5}, 10.0) == ""
    assert advice({}, 0.0) == ""
