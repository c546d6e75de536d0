// Copies across the link, made in one call where the driver can.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda/driver.h"

namespace lmkv::cuda {

class LinkCopies {
 public:
  void add(CUdeviceptr to, CUdeviceptr from, std::size_t bytes);
  // All of them, in any order among themselves. A batch wants memory that CUDA knows: `registered`.
  void run(const Driver& driver, CUstream stream, bool registered);

 private:
  std::vector<CUdeviceptr> to_, from_;
  std::vector<std::size_t> bytes_;
};

}  // namespace lmkv::cuda
