// lwrn_fast._C: facts about the build and the machine. No maths.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

namespace py = pybind11;

namespace lwrn_fast {
namespace {

std::vector<std::string> isas(bool (*holds)(Isa)) {
  std::vector<std::string> names;
  for (Isa isa : kIsasBestFirst)
    if (holds(isa)) names.emplace_back(isa_name(isa));
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = LWRN_VERSION;
  info["compiler"] = LWRN_COMPILER;
  info["instruction_sets"] = isas(isa_built);
  info["cuda_architectures"] = std::vector<std::string>{LWRN_CUDA_ARCHITECTURES};
  info["cuda"] = LWRN_CUDA;
  info["torch"] = LWRN_TORCH_VERSION;
  info["pybind11"] = std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR) + "." +
                     PYBIND11_TOSTRING(PYBIND11_VERSION_PATCH);
  return info;
}

}  // namespace
}  // namespace lwrn_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace lwrn_fast;
  m.doc() = "Facts about the compiled part of lwrn_fast and about this machine.";
  m.def("build_info", &build_info,
        "How the compiled part was built: version, compiler, instruction_sets (best first), cuda_architectures and\n"
        "cuda (which nvcc, or why none), torch (whose headers were used), pybind11.");
  m.def(
      "cpu_isa", [] { return std::string(isa_name(current_isa())); },
      "The instruction set that a call uses now; LWRN_FAST_CPU_ISA forces one. RuntimeError where it cannot run here.");
  m.def(
      "cpu_isas", [] { return isas(isa_runs); },
      "The instruction sets this build and this machine can run, best first.");
}
