// Runs a package that lwrn_fast.export.to_aoti made, without Python. T is the folder of torch:
//   T=$(python -c "import torch; print(torch.__path__[0])")
//   g++ -std=c++20 -O1 run_package.cpp -o run_package -I$T/include -L$T/lib -Wl,-rpath,$T/lib -ltorch_cpu -lc10 -ldl
//   ./run_package lwrn_fast/_ops.so net.pt2 1x3x512x512 image.f32 result.bin
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: run_package OPS PACKAGE SIZE INPUT OUTPUT\n"
    "  OPS      lwrn_fast/_ops.so, which holds the operators\n"
    "  PACKAGE  net.pt2\n"
    "  SIZE     of the input, such as 1x3x512x512\n"
    "  INPUT    a file of so many float32, or - for made-up ones\n"
    "  OUTPUT   a file for the first result, as it is in memory: (N, C, H, W) contiguous\n";

std::vector<int64_t> parse_size(const std::string& text) {
  std::vector<int64_t> size;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, 'x');) {
    if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != std::string::npos)
      throw std::runtime_error("SIZE must be such as 1x3x512x512, got " + text);
    size.push_back(std::stoll(part));
  }
  return size;
}

at::Tensor read_input(const std::string& path, const std::vector<int64_t>& size) {
  at::Tensor input = at::empty(size, at::kFloat);
  float* values = input.mutable_data_ptr<float>();
  if (path == "-") {
    // xorshift, so that every machine makes the same ones, in [-1, 1)
    uint32_t state = 1;
    for (int64_t i = 0; i < input.numel(); ++i) {
      state ^= state << 13;
      state ^= state >> 17;
      state ^= state << 5;
      values[i] = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    }
    return input;
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto bytes = static_cast<std::streamsize>(input.nbytes());
  if (!file) throw std::runtime_error(path + ": cannot be read");
  if (file.tellg() != bytes) throw std::runtime_error(path + ": must hold " + std::to_string(bytes) + " bytes");
  file.seekg(0).read(reinterpret_cast<char*>(values), bytes);
  return input;
}

void run(const std::string& ops, const std::string& package, const std::string& size, const std::string& input_path,
         const std::string& output_path) {
  // The library registers its operators with torch as it is loaded.
  if (!dlopen(ops.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader loader(package);
  const at::Tensor input = read_input(input_path, parse_size(size));

  loader.run({input});  // the first run allocates and packs
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor result = loader.run({input}).at(0).contiguous();
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;

  std::ofstream file(output_path, std::ios::binary);
  file.write(static_cast<const char*>(result.const_data_ptr()), static_cast<std::streamsize>(result.nbytes()));
  if (!file.flush()) throw std::runtime_error(output_path + ": cannot be written");
  std::cout << result.scalar_type() << " " << result.sizes() << " in " << took.count() << " ms\n";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
  } catch (const c10::Error& error) {
    std::cerr << "run_package: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "run_package: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
