#include "common/json_text.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/file_kind.h"
#include "common/text.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr size_t kFaultBytesMax = 250;
constexpr size_t kKeyBytesMax = 64;

// "line 3, column 12" of the byte before `position`, which is where a parser stopped.
std::string PlaceText(std::string_view text, size_t position) {
  const std::string_view before =
      text.substr(0, std::min(position == 0 ? 0 : position - 1, text.size()));
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const size_t begin = before.find_last_of('\n');
  const size_t column = before.size() - (begin == std::string_view::npos ? 0 : begin + 1) + 1;
  return absl::StrCat("line ", line, ", column ", column);
}

// The library's words, "[json.exception.…] parse error at line 1, column 2: syntax error …", without
// what is said already.
std::string_view Words(std::string_view what) {
  if (const size_t end = what.find("] "); end != std::string_view::npos)
    what.remove_prefix(end + 2);
  if (what.starts_with("parse error at ")) {
    if (const size_t end = what.find(": "); end != std::string_view::npos)
      what.remove_prefix(end + 2);
  }
  return what;
}

// Threads: thread-compatible. Invariant: once fault() is not empty, every event is answered with false.
class FaultFinder final : public nlohmann::json_sax<json> {
 public:
  FaultFinder(std::string_view text, RepeatedKeys repeated) : text_(text), repeated_(repeated) {}
  const std::string& fault() const { return fault_; }

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a JSON boolean"); }
  bool number_integer(number_integer_t) override { return Value("a JSON number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a JSON number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a JSON number"); }
  bool string(string_t&) override { return Value("a JSON string"); }
  bool binary(binary_t&) override { return Value("binary data"); }
  bool start_array(size_t) override {
    if (!Value("a JSON array")) return false;
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool start_object(size_t) override {
    ++depth_;
    if (repeated_ == RepeatedKeys::kRefused) keys_.emplace_back();
    return true;
  }
  bool end_object() override {
    --depth_;
    if (!keys_.empty()) keys_.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    if (keys_.empty() || keys_.back().insert(name).second) return true;
    fault_ = absl::StrCat("the key \"", ForPeople(name, kKeyBytesMax), "\" stands twice");
    return false;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    fault_ = ForPeople(PlaceText(text_, position) + ": " + std::string(Words(error.what())),
                       kFaultBytesMax);
    return false;
  }

 private:
  // A value that is no object, where one may stand.
  bool Value(const char* kind) {
    if (depth_ > 0) return true;
    fault_ = kind;
    return false;
  }

  const std::string_view text_;
  const RepeatedKeys repeated_;
  size_t depth_ = 0;
  std::vector<absl::flat_hash_set<std::string>> keys_;  // of the objects that are open
  std::string fault_;
};

}  // namespace

std::string JsonObjectFault(std::string_view text, RepeatedKeys repeated) {
  if (std::string kind = ForeignKind(text, GivenAs::kModel); !kind.empty()) return kind;
  FaultFinder finder(text, repeated);
  (void)json::sax_parse(text.begin(), text.end(), &finder);  // its answer: whether there is a fault
  return finder.fault();
}

}  // namespace signvote
