"""Reasons why conditions do not apply to entrances of the table."""

from support.entrances.images import FILES

COPIES = ("deep_copy", "pickled", "saved_whole", "shallow_copy", "replica")
IMAGES = tuple(f"{name}_file" for name in FILES) + ("image_as_pil", "image_as_tensor", "image_memory")
TENSORS = ("memory_formats", "tensor_subclass")


def why(reason: str, *names: str) -> dict[str, str]:
    """Return the reason why these conditions do not apply, for each by its name."""
    return dict.fromkeys(names, reason)


# Reasons why conditions do not apply, by groups of entrances.
NO_LIST = why("it takes no list", "tuple_for_list")
NO_SIZES = why("no number is among its arguments", "numpy_integers")
NO_IMAGES = why("it takes tensors, not images", *IMAGES)
FUNCTION = NO_IMAGES | {
    **why("a function holds nothing that could be copied, changed or derived from", *COPIES, "changed_weights"),
    **why("a function has no class", "subclass"),
    **why("a function has no weights of its own", "derivative_after_a_call"),
}
NO_GRADIENTS = why("it is for inference, its weights are constants", "derivative_after_a_call", "changed_weights")
NO_CHILDREN = why("it is no module whose children could be others", "shallow_copy", "replica")
MODULE = NO_IMAGES | NO_SIZES | NO_LIST
OPTIMIZED = MODULE | NO_GRADIENTS | why("it runs a copy that nobody changes, and says so", "shallow_copy", "replica")
FIXED = why("which backend runs is decided while the graph is traced, as its page says", "backend_of_a_thread")
COMPILED = FIXED | why("optimize says that compiled code cannot be copied", *COPIES[:3])
WRAPPED = FIXED | {
    **why("PyTorch's own OptimizedModule is what would be copied", *COPIES),
    **why("torch.compile has no forward-mode derivatives", "derivative_after_a_call"),
}
BY_DYNAMO = why(
    "Dynamo decides when to compile again, as in the row torch_compile; here each time takes seconds",
    *("other_size_before", "part_of_a_batch", "thread_count", "memory_formats", "other_width_before"),
)
BY_OPTIMIZE = why(
    "optimize compiles it, which has a row; here each time takes seconds",
    *("part_of_a_batch", "thread_count", "other_width_before", "poisoned_memory", "another_environment"),
)
PACKAGE = why(
    "export makes its graph as for ONNX, which has a row; here each package takes ten seconds",
    *("deleted_instance", "other_width_before", "subclass", "made_in_a_thread", "made_under_default_dtype"),
    *("made_in_inference_mode", "another_environment"),
)
BY_TO_ONNX = why(
    "the command calls to_onnx, which has a row; here each file takes seconds",
    *("deleted_instance", "other_width_before", "made_in_a_thread", "made_in_inference_mode"),
)
FILE = (
    MODULE
    | NO_GRADIENTS
    | NO_CHILDREN
    | FIXED
    | {
        **why("what is called is a file in another runtime", *COPIES, "keywords", "tensor_subclass", "poisoned_memory"),
    }
)
SEGMENTER = NO_GRADIENTS | NO_CHILDREN | NO_LIST | NO_SIZES | why("it takes images, not tensors of maps", *TENSORS)
COMMAND = {
    **why("a command has no object, and its weights are in a file", *COPIES, "changed_weights", "subclass"),
    **why("a command's arguments are strings", *TENSORS, "keywords", "tuple_for_list", "numpy_integers"),
    **why("a command's images are files", "image_as_pil", "image_as_tensor", "image_memory"),
    **why("a command gives no tensor that could be differentiated", "derivative_after_a_call"),
}
LABELS = MODULE | {
    **why("labels have no derivative", "derivative_after_a_call"),
    **why("it has no weights", "changed_weights"),
}
MODULE_OF_MAPS = NO_IMAGES | NO_SIZES | why("its maps are positional arguments without names", "keywords")
DECODER = NO_IMAGES | NO_SIZES
PREPROCESS = {
    **{name: reason for name, reason in FUNCTION.items() if name not in IMAGES},
    **why("it takes one image", "part_of_a_batch"),
    **why("it takes images, not tensors of maps", *TENSORS),
    **NO_LIST,
}
ONE_STDOUT = why("its result is in what it prints, and a process has one stdout", "threads_at_once")
NO_OPS = why("it runs none of our ops", "backend_of_a_thread")
NO_FILES = why("it takes no image files", *(f"{name}_file" for name in FILES))
IN_PAIRS = {
    **why("its images come in folders with their labels; `segment` reads images alike", *NO_FILES),
    **why("its result is of all images together", "part_of_a_batch"),
}
TRAINING = why("it needs gradients, which the caller forbids", "no_grad", "inference_mode", "made_in_inference_mode")
LOADED = NO_FILES | why("the model that it wrote is load's, with its row", *COPIES)
DRAWN = why("it draws as many images as it is asked for", "part_of_a_batch")
TOLD = why("it takes nothing", "other_size_before", "part_of_a_batch")
NO_WEIGHTS = {
    **why("it has no weights: two instances are one", "second_instance", "instance_made_before", "other_order"),
    **why("it has no weights: two instances are one", "deleted_instance", "other_width_before"),
}
FIGURES = NO_WEIGHTS | {
    **why("its result is times, which are judged by being there", "other_size_before", "part_of_a_batch"),
    **why("it sets the backends itself, one after the other", "reference_backend", "backend_of_a_thread"),
    **why("it measures the machine, which one run at a time can do", "threads_at_once"),
}
