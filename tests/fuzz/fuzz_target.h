#pragma once
// What every fuzzer of this folder is made of: one function that takes any bytes and must neither
// crash nor break what it checks. With libFuzzer (preset `fuzz`) its engine calls it with bytes
// that it makes up; in every other build replay_main.cc calls it with the files of the corpus.
//
// A property that does not hold ends the process through SIGNVOTE_CHECK, as a crash does.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace signvote::fuzz {

// Takes the input apart, from its front; what is not there is zero.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(data, size) {}

  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const uint8_t byte = rest_.front();
    rest_ = rest_.subspan(1);
    return byte;
  }
  // The next bytes, at most `bytes_max`.
  std::string Text(size_t bytes_max) {
    const size_t n = std::min(bytes_max, rest_.size());
    std::string text(rest_.begin(), rest_.begin() + static_cast<std::ptrdiff_t>(n));
    rest_ = rest_.subspan(n);
    return text;
  }
  std::string Rest() { return Text(rest_.size()); }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace signvote::fuzz
