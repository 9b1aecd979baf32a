# `make run` trains and evaluates everything; `make test` checks the code. `make` alone lists all targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# idle threads spin for some microseconds only (stages/runtime/environment.py says why)
export GOMP_SPINCOUNT := 1000
export OMP_WAIT_POLICY := PASSIVE
# empty, as uv compiles nothing: where it is set, every process would compile torch and MLflow again, for longer than it works
export PYTHONDONTWRITEBYTECODE :=
# no telemetry of any tool, no account, no download from a model hub
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0

# uv needs half a minute where pip needs five; pip, where uv cannot be used (an index that only pip knows, no uv for this machine)
PIP := python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
define install
{ $(PIP) -r <(sed -n '/^uv==/,/[^\\]$$/p' requirements.lock) && python -m uv pip install --quiet --system-certs --python $(VENV) \
	--no-deps --require-hashes -r $(1); } || { echo "uv cannot install it (see above); pip does, in some minutes ..." >&2; $(PIP) -r $(1); }
endef

# CPU=1: PyPI has no PyTorch without CUDA for Linux, so it comes from PyTorch's own index, without the hashes of the lock
CUDA_PARTS := ^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==
define install_cpu
sed -n 's/^\(\(torch\|torchvision\)==[^ ;]*\).*/\1/p' $(1) > $(VENV)/cpu.txt && $(PIP) -r <(sed -n '/^uv==/,/[^\\]$$/p' $(1)) && \
	{ python -m uv pip install --quiet --system-certs --python $(VENV) --torch-backend cpu --no-deps -r $(VENV)/cpu.txt || \
	{ echo "PyTorch's index of CPU wheels cannot be used (see above). Without CPU=1 PyTorch comes from PyPI, with CUDA: 4 GB of disk more" >&2; exit 1; }; } && \
	awk '/^[a-z]/ {skip = $$0 ~ /$(CUDA_PARTS)/} !skip' $(1) > $(VENV)/rest.txt && $(call install,$(VENV)/rest.txt)
endef

N ?= 32
SEED ?= 0
OUT ?= generated
NEEDS_DATA = $(if $(DATA),$(if $(PRESET),$(error PRESET and DATA both write params.yaml: give one of them)),$(if \
	$(FROM),$(error FROM goes on from a model with the images of DATA: give both),$(foreach name,MINUTES SIZE,$(if \
	$(filter command,$(firstword $(origin $(name)))),$(error $(name) belongs to DATA=/your/images: give both, or leave $(name) out)))))
BUDGET = --minutes $(or $(MINUTES),20) --size $(or $(SIZE),auto) $(if $(FROM),--from "$$FROM")
# as they were typed: make would expand the $5 in PROMPT='a $5 bill'
override PROMPT := $(value PROMPT)
override PROMPTS := $(value PROMPTS)
export PROMPT PROMPTS DATA FROM
export THOUSANDWORDS_NIGHTLY := $(or $(NIGHTLY),$(THOUSANDWORDS_NIGHTLY))
# in the order given: the longest files first, not those with the most tests
PYTEST := OMP_NUM_THREADS=1 python -m pytest --dist loadfile --no-loadscope-reorder
QUICK := tests/unit tests/contracts tests/architecture

.PHONY: help setup ray run test test-all test-slow bench conformance lint generate compare human-eval-sheet human-eval-votes flow status deploy workers workers-stop fleet nightly register promote rollback serve servers servers-stop servers-status studio ui plan verify repair lock clean

help:  ## this list
	@awk -F ':.*## ' '/^##@ /{print "\n" substr($$0, 5)} /^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo '  PRESET=smoke|default|example|vqvae|multi_scale|next_scale|vqgan|flow|consistency|recaption|emoji|photos|gpu|paper  a whole set of settings, e.g. make run PRESET=smoke'

##@ Train and generate

setup: $(READY)  ## make .venv from requirements.lock (once); CPU=1: PyTorch without CUDA, 4 GB less

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}. Try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "setting up $(VENV) from requirements.lock ($(if $(CPU),a minute or more,7 GB of disk; on a machine without a GPU CPU=1 takes 4 GB less), once) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(call $(if $(CPU),install_cpu,install),requirements.lock)
	@python -m pip --disable-pip-version-check check
	@touch $(READY)

run: $(READY)  ## captioned images -> tokens -> models -> ranked images -> report; only what changed runs again; DATA=/your/images MINUTES=20 SIZE=auto FROM=champion
	@$(if $(PRESET),python -m scripts.use_preset $(PRESET))
	$(NEEDS_DATA)
	@$(if $(DATA),python -m scripts.use_data "$$DATA" $(BUDGET))
	@python -m flows.run_local
	@python -m scripts.print_run_summary

plan: $(READY)  ## time, memory and disk of a run before it starts: make plan PRESET=gpu PAIRS=1000000, or DATA=/your/images MINUTES=20
	$(NEEDS_DATA)
	@python -m scripts.plan $(if $(PRESET),--preset $(PRESET)) $(if $(PAIRS),--pairs $(PAIRS)) $(if $(DATA),--data "$$DATA" $(BUDGET))

generate: $(READY)  ## PROMPT="a small red star on sand" or PROMPTS=file.txt, N=32, SEED=0: ranked images in generated/; FROM=champion
	@python -m $(if $(FROM),flows.generate --alias $(FROM),thousandwords generate) --candidates $(N) --seed $(SEED) --out $(OUT) \
		$(if $(PROMPTS),--prompts "$$PROMPTS",-- "$$PROMPT")

studio: $(READY)  ## a page to generate, inpaint, edit tokens, browse and compare, at http://127.0.0.1:7860; OPTIONS="--port 8000"
	@python -m studio $(OPTIONS)

ui: $(READY)  ## MLflow: every run with its curves and images, at http://127.0.0.1:5000
	@python -c 'from stages.runtime.tracking import repair_moved_store; repair_moved_store()'
	@mlflow ui --host 127.0.0.1 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/.mlflow/mlflow.db}"

verify: $(READY)  ## re-hash every artefact and compare with its manifest
	@python -m scripts.verify_artifacts

repair: $(READY)  ## remove what is damaged, here and in DVC's cache, and make it again
	@python -m scripts.verify_artifacts --repair
	@$(MAKE) --no-print-directory run

clean:  ## remove resumable state and the environment; data, models and results stay
	rm -rf $(VENV) .ckpt .pytest_cache .ruff_cache

##@ Compare

compare: $(READY)  ## two runs side by side as a page: A=HEAD B=workspace, or any two commits, branches, tags or folders
	@python -m flows.compare "$(or $(A),HEAD)" "$(or $(B),workspace)" --out $(or $(PAGE),results/compare.html) \
		$(if $(COUNT),--prompts $(COUNT))

human-eval-sheet: $(READY)  ## a page for blind votes between two runs: A=, B= as for compare, COUNT=50 prompts
	@python -m flows.compare "$(or $(A),HEAD)" "$(or $(B),workspace)" --sheet $(or $(PAGE),results/sheet.html) \
		$(if $(COUNT),--prompts $(COUNT))

human-eval-votes: $(READY)  ## VOTES="anna.csv ben.csv": count the votes; KEY=results/sheet-key.json
	@python -m thousandwords human-eval-votes --key $(or $(KEY),results/sheet-key.json) --out results/votes.json $(VOTES)

##@ A team, several machines

ray: $(READY)  ## add Ray to .venv, for engine: {kind: ray} (docs/scale.md)
	@$(call install,requirements-ray.lock)

flow: $(READY)  ## the same graph as a Prefect flow, stage by stage
	@python -m flows.pipeline

status: $(READY)  ## what runs where, which version is champion, which stages are stale
	@python -m flows.status

workers: $(READY)  ## one worker per GPU and one for stages without GPU, on the servers of this folder or of PREFECT_API_URL
	@python -m flows.workers start $(if $(RUNS),--runs $(RUNS)) $(if $(NAME),--name $(NAME))

workers-stop: $(READY)  ## stop the workers; they save checkpoints first
	@python -m flows.workers stop

deploy: $(READY)  ## work pools, the deployments of prefect.yaml, the check for dead runs; NIGHTLY="0 3 * * *" (UTC)
	@python -m flows.deploy

fleet: $(READY)  ## the pipeline over the clones of all workers, each stage where there is room (docs/scale.md)
	@python -m flows.fleet

nightly: $(READY)  ## new data, pipeline, gate, champion: once, now
	@python -m flows.nightly

register: $(READY)  ## models/package becomes a version in the registry, @challenger
	@python -m flows.registry register

promote: $(READY)  ## @challenger becomes @champion, if the gate allows it
	@python -m flows.registry promote

rollback: $(READY)  ## the previous champion is champion again
	@python -m flows.registry rollback

serve: $(READY)  ## the champion as a service: prompts in, images out, at http://127.0.0.1:5001/invocations
	@python -m flows.registry serve

servers: $(READY)  ## MLflow and Prefect with SQLite, on this machine, with passwords; TEAM=1: with PostgreSQL and S3 (no docker)
	@python -m flows.services start $(if $(TEAM),--team)

servers-stop: $(READY)  ## stop them, also what a kill left behind
	@python -m flows.services stop

servers-status: $(READY)  ## which of them are up
	@python -m flows.services status

##@ Development

test: lint  ## lint, unit, contract and architecture tests, and one pipeline on the smoke preset
	@$(PYTEST) -n 2 tests/pipeline/test_smoke.py $(QUICK)

# more workers than cores, and files that wait for servers beside files that compute: the first wait for three quarters of their time
test-all: lint  ## all tests but the slow ones: those of make test, and stages, servers, browser, reliability
	@$(PYTEST) -n 5 $$(paste -d ' ' <(ls -S $$(find tests/services tests/reliability -name 'test_*.py')) \
		<(ls -S $$(find tests/browser tests/pipeline -name 'test_*.py'))) $(QUICK)

test-slow: $(READY)  ## thousands of trials: kills, flipped bits, damaged files, real servers (hours)
	@OMP_NUM_THREADS=1 python -m pytest -m slow -s

bench: $(READY)  ## speed of training and sampling here, against a peer and against plain matrix products (3 minutes)
	@python -m bench.training
	@python -m bench.sampling
	@python -m bench.growth

conformance: $(READY)  ## the paper's numbers, row by row: source, value, tests, and whether they hold
	@OMP_NUM_THREADS=1 python -m tests.architecture.conformance

lint: $(READY)  ## ruff: rules and format
	@ruff check --quiet .
	@ruff format --quiet --check .

lock: $(READY)  ## write requirements.lock anew from pyproject.toml
	@uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra pipeline --extra servers --extra dev pyproject.toml -o requirements.lock
	@sed -n 's/^ray = \["\(.*\)"\].*/\1/p' pyproject.toml | uv pip compile - -c requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --no-annotate -o requirements-ray.lock
