# What a fresh clone on plain Debian 12 or 13 can do. Every target sets itself up (.ci/setup): nothing is fetched twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test lint bench kills proof soak trace man image image-arm64 installer test-vm test-vm-full test-vm-arm64 clean

PYTHON := .venv/bin/python
CORES := $(shell nproc 2>/dev/null || echo 2)
WORKERS ?= $(shell echo $$(( $(CORES) > 3 ? 4 : $(CORES) + 1 )))
ROUNDS ?= 200
MINUTES ?= 30

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

run: ## a gateway, its archive and a simulated scanner to watch; ONCE=1 ends after the balance, ADDRESS=0.0.0.0 for real scanners
	@.ci/setup run
	@exec $(PYTHON) -m appliance.demo --folder build $(if $(filter-out 0,$(ONCE)),--once) $(addprefix --address=,$(ADDRESS)) $(addprefix --port=,$(PORT))

lint: ## style, types, layers
	@.ci/setup dev
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

test: lint ## lint, then every test, with the real peers
	@.ci/setup peers pages
	status=0; $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup --junitxml build/tests.xml $(PYTEST) || status=$$?; \
	$(PYTHON) -m tests.proof.trace || status=$${status/#0/1}; exit $$status

kills: ## SIGKILL at random moments, ROUNDS=200 of them
	@.ci/setup dev peers
	DCMGATE_KILL_ROUNDS=$(ROUNDS) $(PYTHON) -m pytest tests/system/test_kills.py --timeout 14400 $(PYTEST)

proof: ## all that tries to lose an image, into build/proof.json; QUICK=1 for a sample in 10 minutes, ONLY="kills fuzz" for some
	@.ci/setup dev peers
	@status=0; $(PYTHON) -m tests.proof $(if $(filter-out 0,$(QUICK)),--quick) $(if $(ONLY),--only "$(ONLY)") \
	    $(if $(filter-out 0,$(REFRESH)),--refresh) $(PROOF) || status=$$?; \
	$(PYTHON) -m tests.proof.trace || status=$${status/#0/1}; exit $$status

soak: ## mixed faults at twice the peak rate, MINUTES=30 of them
	@.ci/setup dev peers
	@$(PYTHON) -m tests.proof --only soak --seconds $$(( 60 * $(MINUTES) ))

trace: ## hazard, requirement, test and last result of `make test` and `make proof`, in build/trace.md
	@$(or $(wildcard $(PYTHON)),python3) -m tests.proof.trace

bench: ## against the peers and the limit, into build/bench.json; QUICK=1 for few rounds, ONLY=word for some cases
	@.ci/setup dev peers
	@$(PYTHON) -m tests.bench $(if $(filter-out 0,$(QUICK)),--quick) $(if $(ONLY),--only $(ONLY)) $(BENCH)

man: ## the documents as man pages, in build/man
	@.ci/setup pages
	@.ci/man

image: ## the system image for an x86-64 PC, in build/image; needs root and a Debian mirror
	@.ci/setup dev image
	@image-build/build

image-arm64: ## the one for a Raspberry Pi 4, in build/image-arm64; QEMU runs its programs meanwhile
	@.ci/setup dev image
	@image-build/build arm64

installer: ## the image of the installer's stick, beside the system image
	@.ci/setup dev image
	@[[ -n $$(compgen -G 'build/image/dcmgate_*.efi') ]] || image-build/build
	@image-build/installer

test-vm: ## that image in QEMU: boots, is set up, serves; into build/vm.json; in LANES lanes; VM="-k word" for some
	@.ci/setup dev peers image
	@[[ -n $$(compgen -G 'build/image/dcmgate_*.efi') ]] || image-build/build
	@hw-test/lanes.py vm $(VM)

test-vm-full: ## the same with what takes hours: cuts of power by the dozen, a kernel that hangs, disks that rot
	@.ci/setup dev peers image
	@[[ -n $$(compgen -G 'build/image/dcmgate_*.efi') ]] || image-build/build
	@hw-test/lanes.py vm --full $(VM)

test-vm-arm64: ## the arm64 image in QEMU, started by AAVMF and by U-Boot; into build/vm-arm64.json and build/vm-uboot.json
	@.ci/setup dev peers image
	@[[ -n $$(compgen -G 'build/image-arm64/dcmgate_*.efi') ]] || image-build/build arm64
	@status=0; hw-test/run vm-arm64 test_boot.py test_secure_boot.py test_path.py test_system.py test_tries.py $(VM) || status=$$?; \
	hw-test/run vm-uboot test_boot.py test_path.py test_tries.py $(VM) || status=$${status/#0/1}; exit $$status

clean: ## everything that was made here, the environment included
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
