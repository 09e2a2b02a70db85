# make demo: embed the example corpus, cluster it, train heads on its labels, score it, remove near-duplicates, keep the
#     best, evaluate the scores.
# make test: format, lint, types, tests.
# make docs: the documentation site, in build/site; make test builds it, too.
# make faults: the fault tests at length, an hour or two, with their figures in benchmarks/results/faults.json.
# make slurm-up, slurm-down: a Slurm of one node on this machine, as the tests use it.
PYTHON ?= python3
BIN := .venv/bin
# One copy of the dependency set: CI, the README and these targets all install from the lock.
LOCK := requirements.lock
STAMP := .venv/.installed-$(shell cat $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test docs faults slurm-up slurm-down lock clean

demo: $(STAMP)
	$(BIN)/python flows/pipeline.py --embed-config deployments/local/embed.yaml \
	    --cluster-config deployments/local/cluster.yaml --train-config deployments/local/train_head.yaml \
	    --annotate-config deployments/local/annotate.yaml --deduplicate-config deployments/local/deduplicate.yaml \
	    --filter-config deployments/local/filter.yaml
	$(BIN)/ml_filter evaluate_predicted_annotations --input_directory outputs/example/annotated_data \
	    --score_keys score_education --path_to_ground_truth_file outputs/example/heads/education.held_out.jsonl \
	    --valid_labels 0,1,2,3,4,5 --thresholds 3 --output_directory outputs/example/evaluation

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

faults: $(STAMP)
	MLFILTER_FAULTS=long MLFILTER_FAULTS_RESULT=benchmarks/results/faults.json $(BIN)/pytest --timeout 7200 tests/faults

slurm-up slurm-down:
	$(PYTHON) tests/slurm/cluster.py $(@:slurm-%=%)

$(STAMP): $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement $(LOCK)
	$(BIN)/pip install --quiet --no-deps --editable .
	rm -f .venv/.installed-*
	touch $@

HAS_ATHERIS := python_version < "3.14" and sys_platform == "linux" and platform_machine == "x86_64"
# Writes the versions that are installed now to the lock, once the tests pass with them.
lock:
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/^atheris.*/&; $(HAS_ATHERIS)/' > $(LOCK)

clean:
	rm -rf .venv outputs
