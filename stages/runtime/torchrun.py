"""python -m stages.runtime.torchrun: torchrun, which as a stage does compares once more what was read."""

from torch.distributed.run import main

from stages.runtime.inputs import end_when_done

if __name__ == "__main__":
    main()
    end_when_done()
