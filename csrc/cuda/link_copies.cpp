#include "cuda/link_copies.h"

namespace lmkv::cuda {

void LinkCopies::add(CUdeviceptr to, CUdeviceptr from, std::size_t bytes) {
  to_.push_back(to), from_.push_back(from), bytes_.push_back(bytes);
}

void LinkCopies::run(const Driver& driver, CUstream stream, bool registered) {
  CUmemcpyAttributes how{};
  how.srcAccessOrder = COPY_IN_STREAM_ORDER;
  std::size_t first = 0, failed = 0;
  const std::size_t count = to_.size();
  if (registered && driver.copy_batch) {
    driver.copy_batch(to_.data(), from_.data(), bytes_.data(), count, &how, &first, 1, stream);
  } else if (registered && driver.copy_batch_12) {
    driver.copy_batch_12(to_.data(), from_.data(), bytes_.data(), count, &how, &first, 1, &failed,
                         stream);
  } else {
    for (std::size_t n = 0; n < count; ++n) driver.copy(to_[n], from_[n], bytes_[n], stream);
  }
}

}  // namespace lmkv::cuda
