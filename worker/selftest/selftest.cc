#include "worker/selftest/selftest.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/apply.h"
#include "common/apply_kernels.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/half_float.h"
#include "common/payload_plan.h"
#include "common/rng.h"
#include "common/status.h"
#include "worker/direction/checks.h"

namespace signvote {
namespace {

constexpr uint8_t kUntouched = 0xA5;
constexpr size_t kMarginBytes = 8;  // behind each ballot: no device may write there

// One model and how it is packed.
struct Case {
  std::vector<uint64_t> tensors;  // their sizes
  uint64_t chunk = kChunkCoordinatesMultiple;
  DirectionConfig direction;
  bool probe = false;
  bool given = false;    // u is
  bool missing = false;  // some tensors have no gradient, some no probe gradient
  bool special = false;  // NaN, infinities, zeros, denormals among the values
  bool sparse = false;   // half of the tensors are
  float clip = 1.0f;
};

std::string Describe(const Case& c) {
  uint64_t d = 0;
  for (const uint64_t count : c.tensors) d += count;
  return absl::StrCat(std::string(DirectionName(c.direction.kind)), " with noise ",
                      std::string(EnvelopeWord(c.direction.envelope)),
                      c.direction.state_dtype == StateDtype::kBf16 ? " and bf16 state" : "",
                      c.sparse ? ", sparse tensors" : "", c.clip == 1.0f ? "" : ", clipped", ", ",
                      d, " coordinates in ", c.tensors.size(), " tensors (the first has ",
                      c.tensors[0], "), chunks of ", c.chunk, c.probe ? ", with probe" : "",
                      c.given ? ", u given" : "", c.missing ? ", gradients missing" : "",
                      c.special ? ", special values" : "");
}

// Every length around the sizes at which kernels change course, tiny tensors, tensors across tiles
// and chunks.
std::vector<Case> Cases(Rng rng) {
  std::vector<std::vector<uint64_t>> models;
  for (uint64_t d = 1; d <= 4 * 64 + 3; ++d) models.push_back({d});
  for (const uint64_t unit : {uint64_t{256}, uint64_t{512}, uint64_t{4096}}) {
    for (uint64_t times = 1; times <= 3; ++times) {
      for (uint64_t off = 0; off < 7; ++off) models.push_back({unit * times + off - 3});
    }
  }
  models.push_back({4 * 4096 + 3});
  // Two tensors that meet at every place of a word, a group and a tile.
  for (uint64_t at = 1; at <= 66; ++at) models.push_back({at, 300});
  for (const uint64_t at : {255, 256, 257, 511, 512, 513, 4095, 4096, 4097})
    models.push_back({at, 4200});
  for (int k = 0; k < 6; ++k) {
    std::vector<uint64_t> tiny, mixed;
    for (int t = 0; t < 300; ++t) tiny.push_back(1 + rng.Below(40));
    for (int t = 0; t < 12; ++t) mixed.push_back(1 + rng.Below(uint64_t{1} << rng.Below(13)));
    models.push_back(std::move(tiny));
    models.push_back(std::move(mixed));
  }
  std::vector<Case> cases;
  // What packers form themselves: Muon's u is given to them.
  constexpr DirectionKind kKinds[] = {DirectionKind::kSignum, DirectionKind::kSignSgd,
                                      DirectionKind::kLion,   DirectionKind::kStoSign,
                                      DirectionKind::kAdam,   DirectionKind::kMomentumSgd};
  constexpr Envelope kEnvelopes[] = {Envelope::kNone, Envelope::kNone, Envelope::kCoordinate,
                                     Envelope::kTensor, Envelope::kOne};
  constexpr uint64_t kChunks[] = {512, 1024, 4096, 4608, 1 << 15};
  for (size_t k = 0; k < models.size(); ++k) {
    cases.push_back({.tensors = std::move(models[k]),
                     .chunk = kChunks[rng.Below(std::size(kChunks))],
                     .direction = {.kind = kKinds[k % std::size(kKinds)]},
                     .probe = rng.Below(2) == 1,
                     .given = rng.Below(4) == 0,
                     .missing = rng.Below(4) == 0,
                     .special = rng.Below(2) == 1});
    Case& c = cases.back();
    c.direction.envelope = kEnvelopes[rng.Below(std::size(kEnvelopes))];
    if (c.direction.envelope == Envelope::kCoordinate && rng.Below(2) == 0)
      c.direction.envelope_decay = 0.75;
    if (rng.Below(3) == 0) c.direction.state_dtype = StateDtype::kBf16;
    c.sparse = rng.Below(4) == 0;
    if (rng.Below(4) == 0) c.clip = 0.3f;
  }
  return cases;
}

float Draw(Rng* rng, bool special) {
  if (special && rng->Below(3) == 0) {
    using Limits = std::numeric_limits<float>;
    constexpr float kSpecial[] = {0.0f,
                                  -0.0f,
                                  Limits::quiet_NaN(),
                                  -Limits::quiet_NaN(),
                                  Limits::infinity(),
                                  -Limits::infinity(),
                                  Limits::denorm_min(),
                                  -Limits::denorm_min(),
                                  Limits::min(),
                                  Limits::max(),
                                  -Limits::max(),
                                  1.0f};
    return kSpecial[rng->Below(std::size(kSpecial))];
  }
  return static_cast<float>((rng->Uniform() - 0.5) *
                            std::exp2(static_cast<double>(rng->Below(40)) - 20.0));
}

// The same bits; of two NaN the payload is the processor's own business.
bool Same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}
bool Same(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

absl::Status Differs(const std::string& what) { return absl::InternalError(what); }

absl::Status CompareArrays(std::span<const float> got, std::span<const float> want,
                           const char* what) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (Same(got[i], want[i])) continue;
    return Differs(
        absl::StrFormat("%s differs at coordinate %d: %a (%08x) where the definition has %a (%08x)",
                        what, i, static_cast<double>(got[i]), std::bit_cast<uint32_t>(got[i]),
                        static_cast<double>(want[i]), std::bit_cast<uint32_t>(want[i])));
  }
  return absl::OkStatus();
}

absl::Status CompareScalars(const ChunkScalars& got, const ChunkScalars& want, uint32_t chunk) {
  const struct {
    const char* name;
    double got, want;
  } kSums[] = {{"g_l1", got.g_l1, want.g_l1},
               {"g_l2_squared", got.g_l2_squared, want.g_l2_squared},
               {"probe_l1", got.probe_l1, want.probe_l1},
               {"prev_inner", got.prev_inner, want.prev_inner}};
  for (const auto& sum : kSums) {
    if (Same(sum.got, sum.want)) continue;
    return Differs(absl::StrFormat("%s of chunk %d is %a where the definition has %a", sum.name,
                                   chunk, sum.got, sum.want));
  }
  if (got.nonfinite == want.nonfinite) return absl::OkStatus();
  return Differs(absl::StrFormat("nonfinite of chunk %d is %d where the definition has %d", chunk,
                                 got.nonfinite, want.nonfinite));
}

absl::StatusOr<Layout> LayoutOf(const std::vector<uint64_t>& tensors, bool sparse, Rng* rng) {
  std::vector<TensorSpec> specs;
  for (const uint64_t count : tensors) {
    specs.push_back({.name = absl::StrCat("t", specs.size()),
                     .shape = {count},
                     .step_scale = static_cast<float>(0.25 + rng->Uniform()),
                     .weight_decay = static_cast<float>(rng->Below(2)) * 0.1f});
    if (sparse && rng->Below(2) == 0) specs.back().treatment = TensorTreatment::kSparse;
  }
  return Layout::Make(std::move(specs));
}

// Values of a model by tensor in a device's memory, a few values apart, so that no tensor is the
// other's neighbour and every alignment occurs.
class Scattered {
 public:
  static absl::StatusOr<Scattered> Make(const Layout* layout, SelftestMemory* memory, Rng* rng) {
    constexpr uint64_t kGapMax = 4;
    Scattered scattered(layout, memory);
    SIGNVOTE_ASSIGN_OR_RETURN(
        const std::span<float> all,
        memory->Allocate(layout->coordinates() + kGapMax * layout->tensors().size()));
    uint64_t at = 0;
    for (const TensorSpec& tensor : layout->tensors()) {
      at += rng->Below(kGapMax + 1);
      scattered.pointers_.push_back(all.data() + at);
      at += tensor.count;
    }
    return scattered;
  }
  TensorPointers pointers() { return pointers_; }
  // `values` are the whole model's.
  absl::Status Write(std::span<const float> values) {
    for (size_t k = 0; k < pointers_.size(); ++k) {
      const TensorSpec& tensor = layout_->tensors()[k];
      SIGNVOTE_RETURN_IF_ERROR(
          memory_->Write(pointers_[k], values.subspan(tensor.first, tensor.count)));
    }
    return absl::OkStatus();
  }

 private:
  Scattered(const Layout* layout, SelftestMemory* memory) : layout_(layout), memory_(memory) {}

  const Layout* layout_;
  SelftestMemory* memory_;
  std::vector<float*> pointers_;
};

// One case on a device, and the same by the definitions.
class Comparison {
 public:
  Comparison(const Case& c, WorkerDevice* device, SelftestMemory* memory, Rng rng)
      : case_(c), device_(device), memory_(memory), rng_(rng) {}

  absl::Status Run(int rounds) {
    SIGNVOTE_ASSIGN_OR_RETURN(layout_, LayoutOf(case_.tensors, case_.sparse, &rng_));
    const uint64_t d = layout_.coordinates();
    plan_ = ChunkPlan(d, case_.chunk);
    SIGNVOTE_ASSIGN_OR_RETURN(Scattered g, Scattered::Make(&layout_, memory_, &rng_));
    SIGNVOTE_ASSIGN_OR_RETURN(Scattered u, Scattered::Make(&layout_, memory_, &rng_));
    SIGNVOTE_ASSIGN_OR_RETURN(Scattered h, Scattered::Make(&layout_, memory_, &rng_));
    SIGNVOTE_ASSIGN_OR_RETURN(Scattered x, Scattered::Make(&layout_, memory_, &rng_));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaMemory> replica,
                              device_->MakeReplica(&layout_, x.pointers()));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<BallotPacker> packer,
                              device_->MakePacker(&layout_, plan_, case_.direction));
    for (const StatePlane& plane : PlanesOf(case_.direction, StatePlane::Holder::kPacker)) {
      planes_.push_back(plane);
      state_.emplace_back(plane.elements(d) * plane.element_bytes);
    }
    Fill(&x_, case_.special);
    SIGNVOTE_RETURN_IF_ERROR(replica->Write(0, x_));
    Fill(&x0_, case_.special);
    SIGNVOTE_RETURN_IF_ERROR(replica->KeepX0());
    SIGNVOTE_RETURN_IF_ERROR(replica->WriteX0(0, x0_));
    for (int r = 0; r < rounds; ++r) {
      Fill(&g_, case_.special);
      Fill(&u_, case_.special);
      Fill(&h_, case_.special);
      for (size_t i = 0; i < d; ++i) {
        if (rng_.Below(2) == 0) h_[i] = g_[i];  // often close to g, as a probe's gradient is
      }
      SIGNVOTE_RETURN_IF_ERROR(g.Write(g_));
      SIGNVOTE_RETURN_IF_ERROR(u.Write(u_));
      SIGNVOTE_RETURN_IF_ERROR(h.Write(h_));
      const std::vector<const float*> g_pointers = WithGaps(g.pointers());
      const std::vector<const float*> h_pointers = WithGaps(h.pointers());
      const std::vector<const float*> u_pointers(u.pointers().begin(), u.pointers().end());
      Direction::ChunkInput input{.g = g_pointers,
                                  .prev_verdict = r == 0 ? nullptr : verdict_.data(),
                                  .seed = rng_.Next(),
                                  .round = Round(rng_.Below(1000)),
                                  .share = Share(static_cast<uint32_t>(rng_.Below(100))),
                                  .clip = case_.clip};
      if (case_.given) input.u = u_pointers;
      if (case_.probe) input.h = h_pointers;
      SIGNVOTE_RETURN_IF_ERROR(PackAndCompare(packer.get(), input));
      SIGNVOTE_RETURN_IF_ERROR(SumAndCompare(replica.get(), g_pointers));
      SIGNVOTE_RETURN_IF_ERROR(ApplyAndCompare(replica.get()));
      SIGNVOTE_RETURN_IF_ERROR(ApplyCountsAndCompare(replica.get()));
      SIGNVOTE_RETURN_IF_ERROR(ApplyDenseAndCompare(replica.get()));
      SIGNVOTE_RETURN_IF_ERROR(
          StepAndCompare(packer.get(), replica.get(), g_pointers, x.pointers()));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t digest, replica->Digest());
    std::vector<float> got(d);
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, got));
    if (digest != ReplicaDigest(got.data(), 0, d)) return Differs("the replica's digest differs");
    SIGNVOTE_RETURN_IF_ERROR(MoveStateAndCompare(packer.get()));
    return RewindAndCompare(replica.get());
  }

 private:
  void Fill(std::vector<float>* values, bool special) {
    values->resize(layout_.coordinates());
    for (float& v : *values) v = Draw(&rng_, special);
  }

  // The pointers of a gradient of which some tensors may have none.
  std::vector<const float*> WithGaps(TensorPointers all) {
    std::vector<const float*> pointers(all.begin(), all.end());
    if (!case_.missing) return pointers;
    for (const float*& pointer : pointers) {
      if (rng_.Below(3) == 0) pointer = nullptr;
    }
    return pointers;
  }

  PackContext ContextOf(const Direction::ChunkInput& input) const {
    return {.coefficients = CoefficientsOf(case_.direction),
            .formation = FormationOf(case_.direction, steps_),
            .clip = input.clip,
            .seed = input.seed,
            .round = input.round,
            .share = input.share};
  }
  // Tensor n from its coordinate `first` of the model on, from the host's copies.
  PackSegment SegmentOf(size_t n, uint64_t first, uint64_t count,
                        const Direction::ChunkInput& input) {
    PackSegment s{.g = input.g[n] == nullptr ? nullptr : g_.data() + first,
                  .u = input.u.empty() ? nullptr : u_.data() + first,
                  .first = first,
                  .count = count,
                  .sparse = layout_.tensors()[n].treatment == TensorTreatment::kSparse};
    for (size_t plane = 0; plane < planes_.size(); ++plane) {
      if (planes_[plane].single) continue;
      s.state[SlotOf(planes_[plane])] = state_[plane].data() + first * planes_[plane].element_bytes;
    }
    return s;
  }

  // By the definition, as Direction::PackChunk() does it.
  ChunkScalars Expected(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) {
    const uint64_t begin = plan_.First(k), end = begin + plan_.Count(k);
    ChunkScalars total;
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      const uint64_t first = std::max(begin, t.first), stop = std::min(end, t.first + t.count);
      if (first >= stop) continue;
      // A probe gradient that is missing is zero.
      const bool probe = !input.h.empty();
      const bool no_h = probe && input.h[n] == nullptr;
      PackSegment segment = SegmentOf(n, first, stop - first, input);
      segment.h = !probe ? nullptr : no_h ? Zeros(stop - first) : h_.data() + first;
      segment.prev_bits = input.prev_verdict;
      segment.bits = ballot;
      segment.bits_first = begin;
      if (case_.direction.envelope == Envelope::kTensor) segment.envelope = envelopes_[n];
      const PackScalars sums = PackReference(ContextOf(input), segment);
      total.AddSegment(sums, t);
    }
    return total;
  }

  absl::Status PackAndCompare(BallotPacker* packer, const Direction::ChunkInput& input) {
    const uint32_t chunks = plan_.chunks();
    SIGNVOTE_RETURN_IF_ERROR(packer->Begin());
    if (case_.direction.kind == DirectionKind::kAdam) ++steps_;
    SIGNVOTE_RETURN_IF_ERROR(CompareNorm(packer, input.g));
    // Before any state moves, as the first chunk that touches a tensor finds it.
    envelopes_.clear();
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      envelopes_.push_back(
          LargestReference(ContextOf(input), SegmentOf(n, t.first, t.count, input)));
    }
    ballots_.clear();
    for (uint32_t k = 0; k < chunks; ++k) {
      ballots_.emplace_back(plan_.Bytes(ChunkIndex(k)) + kMarginBytes, kUntouched,
                            device_->host_memory().get());
    }
    // Gradients become final in any order; ballots are asked for in any other.
    std::vector<uint32_t> order = Shuffled(chunks);
    for (const uint32_t k : order) {
      SIGNVOTE_RETURN_IF_ERROR(packer->Start(ChunkIndex(k), input, ballots_[k].data()));
    }
    order = Shuffled(chunks);
    for (const uint32_t k : order) {
      SIGNVOTE_RETURN_IF_ERROR(packer->Ready(ChunkIndex(k)).status());
      SIGNVOTE_ASSIGN_OR_RETURN(const ChunkScalars scalars, packer->Finish(ChunkIndex(k)));
      const size_t bytes = plan_.Bytes(ChunkIndex(k));
      std::vector<uint8_t> want(bytes, 0);
      const ChunkScalars sums = Expected(ChunkIndex(k), input, want.data());
      for (size_t i = 0; i < bytes + kMarginBytes; ++i) {
        const uint8_t byte = i < bytes ? want[i] : kUntouched;
        if (ballots_[k][i] == byte) continue;
        return Differs(absl::StrFormat(
            "ballot of chunk %d differs at byte %d of %d: %02x where the definition has %02x", k, i,
            bytes, ballots_[k][i], byte));
      }
      SIGNVOTE_RETURN_IF_ERROR(CompareScalars(scalars, sums, k));
    }
    return CompareState(packer);
  }

  // A local step moves what lies in the replica's memory.
  absl::Status StepAndCompare(BallotPacker* packer, ReplicaMemory* replica, ConstTensorPointers g,
                              TensorPointers x) {
    if (!CheckStepDirection(case_.direction).ok()) return absl::OkStatus();
    const Direction::StepInput input{
        .g = g, .y = x, .eta = static_cast<float>(rng_.Uniform()), .clip = case_.clip};
    SIGNVOTE_RETURN_IF_ERROR(packer->Step(input));
    if (case_.direction.kind == DirectionKind::kAdam) ++steps_;
    const Direction::ChunkInput of_tensors{.g = g, .clip = case_.clip};
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      if (g[n] == nullptr) continue;
      StepReference(ContextOf(of_tensors), SegmentOf(n, t.first, t.count, of_tensors),
                    input.eta * t.step_scale, x_.data() + t.first);
    }
    std::vector<float> got(x_.size());
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, got));
    SIGNVOTE_RETURN_IF_ERROR(CompareArrays(got, x_, "what a local step moves"));
    return CompareState(packer);
  }

  absl::Status CompareNorm(BallotPacker* packer, ConstTensorPointers g) {
    SIGNVOTE_ASSIGN_OR_RETURN(const ChunkScalars sums, packer->Sums(g, nullptr));
    double want = 0;
    std::vector<uint8_t> bits(plan_.Bytes(ChunkIndex(0)));
    for (uint32_t k = 0; k < plan_.chunks(); ++k) {
      const uint64_t begin = plan_.First(ChunkIndex(k));
      double of_chunk = 0;
      ForEachTensorRange(layout_, begin, plan_.Count(ChunkIndex(k)), [&](const TensorRange& range) {
        if (g[range.tensor] == nullptr) return;
        of_chunk += PackReference({}, {.g = g_.data() + range.first,
                                       .bits = bits.data(),
                                       .bits_first = begin,
                                       .first = range.first,
                                       .count = range.count})
                        .g_l2_squared;
      });
      want += of_chunk;
    }
    if (Same(sums.g_l2_squared, want)) return absl::OkStatus();
    return Differs(absl::StrFormat("the gradient's squared norm is %a where the definition has %a",
                                   sums.g_l2_squared, want));
  }

  absl::Status CompareState(BallotPacker* packer) {
    for (size_t plane = 0; plane < planes_.size(); ++plane) {
      if (planes_[plane].single) std::memcpy(state_[plane].data(), &steps_, state_[plane].size());
      std::vector<std::byte> got(state_[plane].size());
      SIGNVOTE_RETURN_IF_ERROR(packer->SaveState(plane, 0, got));
      SIGNVOTE_RETURN_IF_ERROR(CompareBytes(plane, 0, got));
    }
    return absl::OkStatus();
  }
  // `got` is what the device has of the plane from element `first` on.
  absl::Status CompareBytes(size_t plane, uint64_t first, std::span<const std::byte> got) const {
    const size_t bytes = planes_[plane].element_bytes;
    const std::span<const std::byte> want =
        std::span(state_[plane]).subspan(first * bytes, got.size());
    for (size_t i = 0; i < got.size(); i += bytes) {
      if (std::memcmp(got.data() + i, want.data() + i, bytes) == 0) continue;
      if (bytes == sizeof(float)) {
        float a = 0, b = 0;
        std::memcpy(&a, got.data() + i, bytes);
        std::memcpy(&b, want.data() + i, bytes);
        if (Same(a, b)) continue;
      }
      return Differs(absl::StrFormat("the direction's state differs at element %d of plane %s",
                                     first + i / bytes, std::string(planes_[plane].name())));
    }
    return absl::OkStatus();
  }

  // A part of each plane out and in again, and zero.
  absl::Status MoveStateAndCompare(BallotPacker* packer) {
    for (size_t plane = 0; plane < planes_.size(); ++plane) {
      const size_t bytes = planes_[plane].element_bytes;
      const uint64_t elements = planes_[plane].elements(layout_.coordinates());
      const uint64_t first = rng_.Below(elements);
      std::vector<std::byte> part((1 + rng_.Below(elements - first)) * bytes);
      for (std::byte& b : part) b = static_cast<std::byte>(rng_.Below(128));  // no NaN
      SIGNVOTE_RETURN_IF_ERROR(packer->RestoreState(plane, first, part));
      std::copy(part.begin(), part.end(),
                state_[plane].begin() + static_cast<ptrdiff_t>(first * bytes));
      if (planes_[plane].single) std::memcpy(&steps_, state_[plane].data(), sizeof(steps_));
      SIGNVOTE_RETURN_IF_ERROR(CompareState(packer));
      std::fill(part.begin(), part.end(), std::byte{0});
      SIGNVOTE_RETURN_IF_ERROR(packer->SaveState(plane, first, part));
      SIGNVOTE_RETURN_IF_ERROR(CompareBytes(plane, first, part));
    }
    for (std::vector<std::byte>& plane : state_)
      std::fill(plane.begin(), plane.end(), std::byte{0});
    steps_ = 0;
    SIGNVOTE_RETURN_IF_ERROR(packer->Reset());
    return CompareState(packer);
  }

  // Σ g·(x0 − x) and Σ (x − x0)² in the stated order.
  absl::Status SumAndCompare(ReplicaMemory* replica, ConstTensorPointers g) {
    SIGNVOTE_ASSIGN_OR_RETURN(const X0Sums got, replica->SumsAboutX0(layout_, g));
    X0Sums want, block;
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      for (uint64_t i = t.first; i < t.first + t.count; ++i) {
        const double moved = static_cast<double>(x_[i] - x0_[i]);
        block.distance_squared += moved * moved;
        if (g[n] != nullptr && std::isfinite(g_[i]))
          block.inner -= static_cast<double>(g_[i]) * moved;
        if ((i + 1) % kReplicaDigestBlock != 0 && i + 1 != x_.size()) continue;
        want.inner += block.inner;
        want.distance_squared += block.distance_squared;
        block = {};
      }
    }
    const auto same = [](double a, double b) {
      return Same(a, b) || (std::isnan(a) && std::isnan(b));
    };
    if (same(got.inner, want.inner) && same(got.distance_squared, want.distance_squared))
      return absl::OkStatus();
    return Differs(
        absl::StrFormat("the sums about x0 differ: %a, %a where the definition has %a, %a",
                        got.inner, got.distance_squared, want.inner, want.distance_squared));
  }

  absl::Status RewindAndCompare(ReplicaMemory* replica) {
    const uint64_t first = rng_.Below(x_.size());
    const uint64_t count = 1 + rng_.Below(x_.size() - first);
    SIGNVOTE_RETURN_IF_ERROR(replica->Rewind(first, count));
    std::copy_n(x0_.begin() + static_cast<ptrdiff_t>(first), count,
                x_.begin() + static_cast<ptrdiff_t>(first));
    std::vector<float> got(x_.size());
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, got));
    SIGNVOTE_RETURN_IF_ERROR(CompareArrays(got, x_, "the rewound replica"));
    SIGNVOTE_RETURN_IF_ERROR(replica->ReadX0(0, got));
    return CompareArrays(got, x0_, "x0");
  }

  const float* Zeros(uint64_t count) {
    if (zeros_.size() < count) zeros_.assign(count, 0.0f);
    return zeros_.data();
  }

  // Whole or in two parts, as after a state transfer.
  absl::Status ApplyAndCompare(ReplicaMemory* replica) {
    const uint64_t d = layout_.coordinates();
    verdict_.resize(BytesForBits(d));
    for (uint8_t& byte : verdict_) byte = static_cast<uint8_t>(rng_.Next());
    const float gamma = static_cast<float>(rng_.Uniform() * 0.1);
    const uint64_t cut = rng_.Below(2) == 0 ? 0 : rng_.Below(d);
    // Commits with and without each of what a step may have.
    std::vector<float> scales;
    StepArguments step{.gamma = gamma};
    if (rng_.Below(2) == 0) step.rho = 0.75f;
    if (rng_.Below(2) == 0) step.decay_step = static_cast<float>(rng_.Uniform());
    if (rng_.Below(2) == 0) {
      for (size_t n = 0; n < layout_.tensors().size(); ++n)
        scales.push_back(static_cast<float>(rng_.Uniform() * 2));
      step.scales = scales;
    }
    const auto apply = [&](uint64_t first, uint64_t count) {
      return replica->Apply(layout_, step, first, count, verdict_.data());
    };
    SIGNVOTE_RETURN_IF_ERROR(apply(0, cut));
    SIGNVOTE_RETURN_IF_ERROR(apply(cut, d - cut));
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      const TensorStep of_tensor = MakeTensorStep(step, t, n);
      if (step.rho == 1.0f) {
        apply_kernels::kScalar.step(x_.data() + t.first, t.count, verdict_.data(), t.first,
                                    of_tensor.a, of_tensor.c);
      } else {
        apply_kernels::kScalar.rescaled_step(x_.data() + t.first, x0_.data() + t.first, t.count,
                                             verdict_.data(), t.first, of_tensor.a, of_tensor.c,
                                             step.rho);
      }
    }
    std::vector<float> got(d);
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, got));
    return CompareArrays(got, x_, "the replica");
  }

  // A step with or without each of what it may have beside γ.
  StepArguments SomeStep() {
    StepArguments step{.gamma = static_cast<float>(rng_.Uniform() * 0.1)};
    if (rng_.Below(2) == 0) step.rho = 0.75f;
    if (rng_.Below(2) == 0) step.decay_step = static_cast<float>(rng_.Uniform());
    return step;
  }
  // `apply` moves the replica's coordinates [first, first + count), `scalar` x_ of one tensor; the
  // former in two parts that begin anywhere.
  template <typename Apply, typename Scalar>
  absl::Status StepAndCompare(ReplicaMemory* replica, const StepArguments& step, const Apply& apply,
                              const Scalar& scalar, const char* what) {
    const uint64_t d = layout_.coordinates();
    const uint64_t cut = rng_.Below(d);
    SIGNVOTE_RETURN_IF_ERROR(apply(0, cut));
    SIGNVOTE_RETURN_IF_ERROR(apply(cut, d - cut));
    for (size_t n = 0; n < layout_.tensors().size(); ++n) {
      const TensorSpec& t = layout_.tensors()[n];
      scalar(t, MakeTensorStep(step, t, n));
    }
    std::vector<float> got(d);
    SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, got));
    return CompareArrays(got, x_, what);
  }

  absl::Status ApplyCountsAndCompare(ReplicaMemory* replica) {
    const uint64_t d = layout_.coordinates();
    const auto ballots =
        static_cast<uint32_t>(1 + rng_.Below(rng_.Below(2) == 0 ? 4 : kBallotsMax));
    const size_t plane_bytes = BytesForBits(d);
    const uint32_t plane_count = CountPlanes(ballots);
    std::vector<uint8_t> planes(plane_count * plane_bytes);
    for (uint8_t& byte : planes) byte = static_cast<uint8_t>(rng_.Next());
    const StepArguments step = SomeStep();
    const CountsView counts{
        .planes = planes.data(), .plane_bytes = plane_bytes, .ballots = ballots};
    return StepAndCompare(
        replica, step,
        [&](uint64_t first, uint64_t count) {
          return replica->ApplyCounts(layout_, step, first, count, counts);
        },
        [&](const TensorSpec& t, const TensorStep& of_tensor) {
          const apply_kernels::Counts of_part{.bits = planes.data(),
                                              .plane_bytes = plane_bytes,
                                              .planes = plane_count,
                                              .ballots = ballots,
                                              .bit_offset = t.first};
          float* const x = x_.data() + t.first;
          if (step.rho == 1.0f) {
            apply_kernels::kScalar.counts(x, t.count, of_part, of_tensor.a, of_tensor.c);
          } else {
            apply_kernels::kScalar.rescaled_counts(x, x0_.data() + t.first, t.count, of_part,
                                                   of_tensor.a, of_tensor.c, step.rho);
          }
        },
        "the replica behind counts");
  }

  absl::Status ApplyDenseAndCompare(ReplicaMemory* replica) {
    const uint64_t d = layout_.coordinates();
    const bool bf16 = rng_.Below(2) == 0;
    const size_t bytes = bf16 ? sizeof(uint16_t) : sizeof(float);
    std::vector<uint8_t> values(d * bytes);
    for (uint64_t i = 0; i < d; ++i) {
      const auto value = static_cast<float>(rng_.Uniform() - 0.5);
      const uint16_t narrow = NarrowBf16(value);
      if (bf16) {
        std::memcpy(values.data() + i * bytes, &narrow, sizeof(narrow));
      } else {
        std::memcpy(values.data() + i * bytes, &value, sizeof(value));
      }
    }
    const StepArguments step = SomeStep();
    const DenseView dense{.values = values.data(), .bf16 = bf16};
    const apply_kernels::Table& scalar = apply_kernels::kScalar;
    return StepAndCompare(
        replica, step,
        [&](uint64_t first, uint64_t count) {
          return replica->ApplyDense(layout_, step, first, count, dense);
        },
        [&](const TensorSpec& t, const TensorStep& of_tensor) {
          float* const x = x_.data() + t.first;
          const uint8_t* const v = values.data() + t.first * bytes;
          if (step.rho == 1.0f) {
            (bf16 ? scalar.bf16 : scalar.fp32)(x, t.count, v, of_tensor.a, of_tensor.c);
          } else {
            (bf16 ? scalar.rescaled_bf16 : scalar.rescaled_fp32)(
                x, x0_.data() + t.first, t.count, v, of_tensor.a, of_tensor.c, step.rho);
          }
        },
        "the replica behind a dense step");
  }

  std::vector<uint32_t> Shuffled(uint32_t count) {
    std::vector<uint32_t> order(count);
    for (uint32_t k = 0; k < count; ++k) order[k] = k;
    for (uint32_t k = count; k > 1; --k) std::swap(order[k - 1], order[rng_.Below(k)]);
    return order;
  }

  const Case& case_;
  WorkerDevice* const device_;
  SelftestMemory* const memory_;
  Rng rng_;
  Layout layout_;
  ChunkPlan plan_;
  std::vector<float> g_, u_, h_, x_, x0_;
  std::vector<StatePlane> planes_;
  std::vector<std::vector<std::byte>> state_;  // by plane
  uint64_t steps_ = 0;                         // the plane of steps
  std::vector<float> envelopes_;               // by tensor, of this ballot
  std::vector<float> zeros_;
  std::vector<uint8_t> verdict_;
  std::vector<std::pmr::vector<uint8_t>>
      ballots_;  // outlive the packer, which may have some in flight
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status MeasureRates(WorkerDevice* device, SelftestMemory* memory, Clock* clock,
                          const SelftestOptions& options, SelftestReport* report) {
  const uint64_t d = options.rate_coordinates;
  Rng rng(options.seed, 2);
  SIGNVOTE_ASSIGN_OR_RETURN(const Layout layout, LayoutOf({d}, /*sparse=*/false, &rng));
  const ChunkPlan plan(d, ChunkPlan::DefaultChunkCoordinates(d));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::span<float> g, memory->Allocate(d));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::span<float> x, memory->Allocate(d));
  std::vector<float> values(d);
  for (float& v : values) v = static_cast<float>(rng.Uniform() - 0.5);
  SIGNVOTE_RETURN_IF_ERROR(memory->Write(g.data(), values));
  SIGNVOTE_RETURN_IF_ERROR(memory->Write(x.data(), values));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaMemory> replica,
                            device->MakeReplica(&layout, PointersInto(layout, x.data())));
  const std::vector<const float*> gradient = PointersInto<const float>(layout, g.data());
  std::pmr::vector<uint8_t> bits(plan.TotalBytes(), 0x5A, device->host_memory().get());
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<BallotPacker> packer,
                            device->MakePacker(&layout, plan, {.kind = DirectionKind::kSignum}));

  const auto pack = [&]() -> absl::Status {
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      SIGNVOTE_RETURN_IF_ERROR(packer->Start(ChunkIndex(k), {.g = gradient},
                                             bits.data() + plan.ByteOffset(ChunkIndex(k))));
    }
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      SIGNVOTE_RETURN_IF_ERROR(packer->Finish(ChunkIndex(k)).status());
    }
    return absl::OkStatus();
  };
  const double floats = static_cast<double>(d) * sizeof(float);
  const double packed = static_cast<double>(d) / 8;
  const double pack_bytes = 3 * floats + packed, apply_bytes = 2 * floats + packed;
  SIGNVOTE_ASSIGN_OR_RETURN(const auto kernels, memory->KernelsAlone(g, x));
  struct Measured {
    const char* name;
    double bytes;
    std::function<absl::Status()> run;
    std::vector<double> rates, ratios;
  };
  std::vector<Measured> all;
  all.push_back({"copy", 2 * floats, [&] { return memory->CopyWithin(x.data(), g.data(), d); }});
  all.push_back({"pack", pack_bytes, pack});
  all.push_back(
      {"apply", apply_bytes, [&] { return replica->ApplyStep(layout, 1e-6f, 0, d, bits.data()); }});
  if (kernels.has_value()) {
    all.push_back({"pack kernel", pack_bytes, kernels->pack});
    all.push_back({"apply kernel", apply_bytes, kernels->apply});
  }
  // The first pass of each touches memory and is not counted.
  for (int r = -1; r < options.repetitions; ++r) {
    for (Measured& m : all) {
      const Time begin = clock->Now();
      SIGNVOTE_RETURN_IF_ERROR(m.run());
      const double seconds = std::max(ToSeconds(clock->Now() - begin), 1e-9);
      if (r < 0) continue;
      m.rates.push_back(m.bytes / seconds);
      m.ratios.push_back(m.rates.back() / all[0].rates.back());
    }
  }
  for (const Measured& m : all)
    report->rates.push_back({m.name, Median(m.rates), Median(m.ratios)});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SelftestReport> RunSelftest(WorkerDevice* device, SelftestMemory* memory,
                                           Clock* clock, const SelftestOptions& options) {
  constexpr int kRounds = 2;  // without and with a previous verdict
  SIGNVOTE_CHECK(options.every > 0 && options.repetitions > 0);
  SelftestReport report;
  report.device = device->name();
  const std::vector<Case> cases = Cases(Rng(options.seed, 0));
  for (size_t k = options.seed % options.every; k < cases.size(); k += options.every) {
    const absl::Status same =
        Comparison(cases[k], device, memory, Rng(options.seed, 16 + k)).Run(kRounds);
    memory->FreeAll();
    if (!same.ok()) {
      return WithContext(same,
                         absl::StrCat("self-test of ", report.device, ", case ", k, " of seed ",
                                      options.seed, " (", Describe(cases[k]), ")"));
    }
    ++report.cases;
    report.rounds += kRounds;
    for (const uint64_t count : cases[k].tensors) report.coordinates += kRounds * count;
  }
  if (options.rate_coordinates > 0) {
    const absl::Status measured = MeasureRates(device, memory, clock, options, &report);
    memory->FreeAll();
    if (!measured.ok()) return WithContext(measured, absl::StrCat("rates of ", report.device));
  }
  return report;
}

std::string SelftestText(const SelftestReport& report) {
  std::string text = absl::StrFormat(
      "self-test of %s\n  ballots, sums, state, replica, digest: equal to the definitions in %d "
      "models, "
      "%d rounds, %d coordinates\n",
      report.device, report.cases, report.rounds, report.coordinates);
  for (const SelftestReport::Rate& rate : report.rates) {
    absl::StrAppendFormat(&text, "  %-12s  %8.1f GB/s  %.2f of a copy within the device's memory\n",
                          rate.name, rate.bytes_per_second * 1e-9, rate.of_copy);
  }
  return text;
}

}  // namespace signvote
