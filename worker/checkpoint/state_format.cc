#include "worker/checkpoint/state_format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/exit_codes.h"
#include "common/memory_reserve.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr char kMagic[8] = {'S', 'V', 'W', 'O', 'R', 'K', '\0', '\0'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kFileMode = 0600;
constexpr size_t kPadding = 8;
constexpr size_t kNameBytes = 64;  // 63 at most, and a zero
constexpr uint32_t kUnsettled = 1;
constexpr uint32_t kSectionsMax = 10;

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t sections;
  char run_id[RunId::kBytes];
  uint64_t round;
  uint64_t main_round;
  uint64_t layout_digest;
  uint64_t coordinates;
  uint64_t replica_digest;
  double clip;
  uint32_t share;
  uint32_t flags;
  uint32_t lost;  // 0: nothing is; else 1 + AbstainReason
  uint32_t reserved;
  char worker[kNameBytes];
  uint32_t direction;  // DirectionKind
  uint32_t envelope;
  uint32_t state_dtype;
  uint32_t error_feedback;
  double beta, beta2, envelope_decay, feedback_keep;
  uint64_t checksum;  // XXH3-64 of what stands before
};
static_assert(std::is_trivially_copyable_v<FileHeader>);
static_assert(sizeof(FileHeader) == 216 && offsetof(FileHeader, checksum) == 208);
static_assert(offsetof(FileHeader, share) == 80 && offsetof(FileHeader, worker) == 96);

struct SectionHeader {
  uint32_t kind;
  uint32_t element_bytes;
  uint64_t elements;
  uint64_t payload_checksum;
  uint64_t checksum;  // XXH3-64 of what stands before
};
static_assert(std::is_trivially_copyable_v<SectionHeader>);
static_assert(sizeof(SectionHeader) == 32 && offsetof(SectionHeader, checksum) == 24);

constexpr SectionKind kCarried[] = {SectionKind::kVerdict, SectionKind::kPreviousReplica,
                                    SectionKind::kLastGradient, SectionKind::kContinuation};

absl::Status Damaged(std::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat("is damaged: ", ToAbsl(what))),
                      ExitCode::kBadInput);
}

FileHeader HeaderOf(const WorkerState& state) {
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.sections = static_cast<uint32_t>(state.sections.size());
  std::memcpy(header.run_id, state.run_id.bytes().data(), RunId::kBytes);
  header.round = state.round.value();
  header.main_round = state.main_round;
  header.layout_digest = state.layout_digest;
  header.coordinates = state.coordinates;
  header.replica_digest = state.replica_digest;
  header.clip = state.clip;
  header.share = state.share.value();
  header.flags = state.unsettled ? kUnsettled : 0;
  header.lost = state.lost.has_value() ? 1 + static_cast<uint32_t>(*state.lost) : 0;
  std::memcpy(header.worker, state.worker.data(), std::min(state.worker.size(), kNameBytes - 1));
  const DirectionConfig& d = state.direction;
  header.direction = static_cast<uint32_t>(d.kind);
  header.envelope = static_cast<uint32_t>(d.envelope);
  header.state_dtype = static_cast<uint32_t>(d.state_dtype);
  header.error_feedback = d.error_feedback ? 1 : 0;
  header.beta = d.beta;
  header.beta2 = d.beta2;
  header.envelope_decay = d.envelope_decay;
  header.feedback_keep = d.feedback_keep;
  header.checksum = Xxh3(&header, offsetof(FileHeader, checksum));
  return header;
}

using Append = std::function<absl::Status(std::span<const std::byte>)>;

absl::Status Write(const WorkerState& state, const Append& append) {
  const auto bytes_of = [](const auto& value) { return std::as_bytes(std::span(&value, 1)); };
  const FileHeader header = HeaderOf(state);
  SIGNVOTE_RETURN_IF_ERROR(append(bytes_of(header)));
  for (const Section& section : state.sections) {
    SectionHeader out{.kind = static_cast<uint32_t>(section.kind),
                      .element_bytes = section.element_bytes,
                      .elements = section.elements,
                      .payload_checksum = Xxh3(section.bytes()),
                      .checksum = 0};
    out.checksum = Xxh3(&out, offsetof(SectionHeader, checksum));
    SIGNVOTE_RETURN_IF_ERROR(append(bytes_of(out)));
    SIGNVOTE_RETURN_IF_ERROR(append(section.bytes()));
    const std::array<std::byte, kPadding> zeros{};
    SIGNVOTE_RETURN_IF_ERROR(
        append(std::span(zeros).first((kPadding - section.size() % kPadding) % kPadding)));
  }
  return absl::OkStatus();
}

absl::Status TakeDirection(const FileHeader& header, DirectionConfig* out) {
  if (header.direction >= std::size(kDirectionKinds) ||
      header.envelope > static_cast<uint32_t>(Envelope::kOne) || header.state_dtype > 1 ||
      header.error_feedback > 1) {
    return Damaged("there is no such direction");
  }
  out->kind = static_cast<DirectionKind>(header.direction);
  out->envelope = static_cast<Envelope>(header.envelope);
  out->state_dtype = static_cast<StateDtype>(header.state_dtype);
  out->error_feedback = header.error_feedback == 1;
  out->beta = header.beta;
  out->beta2 = header.beta2;
  out->envelope_decay = header.envelope_decay;
  out->feedback_keep = header.feedback_keep;
  const absl::Status fits = CheckDirection(*out);
  return fits.ok() ? fits : Damaged(ToStd(fits.message()));
}

absl::StatusOr<WorkerState> TakeHeader(const FileHeader& header) {
  WorkerState state;
  const auto run_id = RunId::FromBytes(std::string_view(header.run_id, RunId::kBytes));
  if (!run_id.ok()) return Damaged("its run's id");
  state.run_id = *run_id;
  const auto* const name_end = std::find(header.worker, std::end(header.worker), '\0');
  if (std::any_of(name_end, std::end(header.worker), [](char c) { return c != '\0'; }))
    return Damaged("its worker's name");
  state.worker.assign(header.worker, name_end);
  if (!ValidateWorkerName(state.worker).ok()) return Damaged("its worker's name");
  if (header.flags > kUnsettled || header.reserved != 0 ||
      header.lost > 1 + static_cast<uint32_t>(AbstainReason::kOther) ||
      header.sections > kSectionsMax || header.coordinates == 0) {
    return Damaged("values in its header");
  }
  if (!(header.clip > 0 && header.clip <= 1)) return Damaged("a clip that is none");
  state.round = Round(header.round);
  state.unsettled = header.flags == kUnsettled;
  state.share = Share(header.share);
  state.main_round = header.main_round;
  state.layout_digest = header.layout_digest;
  state.coordinates = header.coordinates;
  state.replica_digest = header.replica_digest;
  state.clip = header.clip;
  if (header.lost > 0) state.lost = static_cast<AbstainReason>(header.lost - 1);
  SIGNVOTE_RETURN_IF_ERROR(TakeDirection(header, &state.direction));
  return state;
}

// What a section of that kind must look like in this state; nullopt: there is none.
struct Shape {
  uint64_t element_bytes = 4, elements = 0;
};
std::optional<Shape> ShapeOf(const WorkerState& state, uint32_t kind) {
  for (const StatePlane& plane : PlanesOf(state.direction)) {
    if (static_cast<uint32_t>(SectionOf(plane.kind)) == kind)
      return Shape{.element_bytes = plane.element_bytes,
                   .elements = plane.elements(state.coordinates)};
  }
  if (kind == static_cast<uint32_t>(SectionKind::kVerdict))
    return Shape{.element_bytes = 1, .elements = BytesForBits(state.coordinates)};
  for (const SectionKind carried : kCarried)
    if (static_cast<uint32_t>(carried) == kind)
      return Shape{.element_bytes = sizeof(float), .elements = state.coordinates};
  return std::nullopt;
}

// The next section, taken off the front of `rest`.
absl::StatusOr<Section> TakeSection(const WorkerState& state, std::span<const std::byte>* rest) {
  SectionHeader header;
  if (rest->size() < sizeof(header)) return Damaged("it is cut short");
  std::memcpy(&header, rest->data(), sizeof(header));
  if (header.checksum != Xxh3(rest->first(offsetof(SectionHeader, checksum))))
    return Damaged("the checksum of a section's header is wrong");
  *rest = rest->subspan(sizeof(header));
  const std::optional<Shape> shape = ShapeOf(state, header.kind);
  if (!shape.has_value() || header.element_bytes != shape->element_bytes ||
      header.elements != shape->elements) {
    return Damaged(absl::StrCat("section ", header.kind, " is none of such a worker"));
  }
  Section section{.kind = static_cast<SectionKind>(header.kind),
                  .element_bytes = header.element_bytes,
                  .elements = 0,
                  .memory = {}};
  if (state.Find(section.kind) != nullptr) return Damaged("a section is there twice");
  if (header.elements > rest->size() / header.element_bytes) return Damaged("it is cut short");
  const uint64_t size = header.elements * header.element_bytes;
  const uint64_t padding = (kPadding - size % kPadding) % kPadding;
  if (padding > rest->size() - size) return Damaged("it is cut short");
  const std::span<const std::byte> payload = rest->first(size);
  if (header.payload_checksum != Xxh3(payload))
    return Damaged(absl::StrCat("the checksum of ", ToAbsl(Words(section.kind)), " is wrong"));
  const std::span<const std::byte> zeros = rest->subspan(size, padding);
  if (std::any_of(zeros.begin(), zeros.end(), [](std::byte b) { return b != std::byte{0}; }))
    return Damaged("what should be zero is not");
  SIGNVOTE_RETURN_IF_ERROR(section.Take(header.elements));
  std::memcpy(section.bytes().data(), payload.data(), size);
  *rest = rest->subspan(size + padding);
  return section;
}

}  // namespace

SectionKind SectionOf(StatePlane::Kind kind) {
  switch (kind) {
    case StatePlane::Kind::kMomentum:
      return SectionKind::kMomentum;
    case StatePlane::Kind::kSquares:
      return SectionKind::kSquares;
    case StatePlane::Kind::kEnvelope:
      return SectionKind::kEnvelope;
    case StatePlane::Kind::kSteps:
      return SectionKind::kSteps;
    case StatePlane::Kind::kResidual:
      return SectionKind::kResidual;
    case StatePlane::Kind::kStepsize:
      break;
  }
  return SectionKind::kStepsize;
}

std::string_view Words(SectionKind kind) {
  switch (kind) {
    case SectionKind::kMomentum:
      return "the momentum";
    case SectionKind::kSquares:
      return "the squares";
    case SectionKind::kEnvelope:
      return "the envelope of the noise";
    case SectionKind::kSteps:
      return "the number of steps";
    case SectionKind::kResidual:
      return "the residual of error feedback";
    case SectionKind::kStepsize:
      return "the last stepsize";
    case SectionKind::kVerdict:
      return "the last verdict";
    case SectionKind::kPreviousReplica:
      return "the previous replica";
    case SectionKind::kLastGradient:
      return "the last gradient";
    case SectionKind::kContinuation:
      break;
  }
  return "where local steps ended";
}

absl::Status Section::Take(uint64_t count) {
  elements = 0;
  const uint64_t bytes = count * element_bytes;
  SIGNVOTE_RETURN_IF_ERROR(TryResize(&memory, (bytes + sizeof(float) - 1) / sizeof(float)));
  elements = count;
  return absl::OkStatus();
}

std::span<std::byte> Section::bytes() {
  return std::as_writable_bytes(std::span(memory)).first(size());
}

std::span<const std::byte> Section::bytes() const {
  return std::as_bytes(std::span(memory)).first(size());
}

const Section* WorkerState::Find(SectionKind kind) const {
  const auto found = std::find_if(sections.begin(), sections.end(),
                                  [kind](const Section& s) { return s.kind == kind; });
  return found == sections.end() ? nullptr : &*found;
}

const Section& WorkerState::plane(size_t k) const {
  return *Find(SectionOf(PlanesOf(direction)[k].kind));
}

std::string EncodeWorkerState(const WorkerState& state) {
  std::string out;
  // A string takes whatever comes.
  (void)Write(state, [&out](std::span<const std::byte> data) {
    out.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  });
  return out;
}

absl::StatusOr<WorkerState> DecodeWorkerState(std::span<const std::byte> bytes) {
  FileHeader header;
  if (bytes.size() < sizeof(header) || std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0) {
    return WithExitCode(absl::InvalidArgumentError("is no worker's state"), ExitCode::kBadInput);
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.checksum != Xxh3(bytes.first(offsetof(FileHeader, checksum))))
    return Damaged("the checksum of its header is wrong");
  if (header.version != kVersion) {
    return WithExitCode(absl::UnimplementedError(absl::StrCat(
                            "has version ", header.version, "; this program reads version ",
                            kVersion, ": the release that wrote it goes on with it")),
                        ExitCode::kBadInput);
  }
  SIGNVOTE_ASSIGN_OR_RETURN(WorkerState state, TakeHeader(header));
  std::span<const std::byte> rest = bytes.subspan(sizeof(header));
  for (uint32_t k = 0; k < header.sections; ++k) {
    SIGNVOTE_ASSIGN_OR_RETURN(Section section, TakeSection(state, &rest));
    state.sections.push_back(std::move(section));
  }
  if (!rest.empty()) return Damaged("something follows its end");
  for (const StatePlane& plane : PlanesOf(state.direction)) {
    if (state.Find(SectionOf(plane.kind)) == nullptr)
      return Damaged(absl::StrCat(ToAbsl(Words(SectionOf(plane.kind))), " is missing"));
  }
  return state;
}

absl::Status WriteWorkerState(FileSystem* fs, const std::string& path, const WorkerState& state) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file,
                            fs->CreateAtomic(path, kFileMode));
  SIGNVOTE_RETURN_IF_ERROR(
      Write(state, [&file](std::span<const std::byte> data) { return file->Append(data); }));
  CrashPoint("checkpoint.written");
  SIGNVOTE_RETURN_IF_ERROR(file->Commit());
  CrashPoint("checkpoint.named");
  return absl::OkStatus();
}

absl::StatusOr<WorkerState> ReadWorkerState(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, fs->Map(path));
  absl::StatusOr<WorkerState> state = DecodeWorkerState(map->data());
  if (state.ok() && map->cut()) state = Damaged("it was cut while it was read");
  if (state.ok()) return state;
  const absl::Status& status = state.status();
  return WithExitCode(absl::Status(status.code(), absl::StrCat(path, " ", status.message())),
                      ExitCodeFor(status));
}

}  // namespace signvote
