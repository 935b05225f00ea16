#include "server/replica/master_replica.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/apply.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace signvote {
namespace {

static_assert(MasterReplica::kPieceCoordinates % kReplicaDigestBlock == 0);
static_assert(MasterReplica::kPieceCoordinates % kChunkCoordinatesMultiple == 0);

constexpr size_t kAlignment = 64;

std::string FolderOf(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MasterReplica>> MasterReplica::Create(Layout layout) {
  SIGNVOTE_CHECK(layout.coordinates() > 0);
  const size_t bytes =
      (layout.coordinates() * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, bytes);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError("no memory for a replica of " +
                                        std::to_string(layout.coordinates()) + " coordinates (" +
                                        std::to_string(bytes) + " bytes)");
  }
  std::memset(memory, 0, bytes);
  return std::unique_ptr<MasterReplica>(
      new MasterReplica(std::move(layout), static_cast<float*>(memory)));
}

MasterReplica::MasterReplica(Layout layout, float* x)
    : layout_(std::move(layout)),
      x_(x),
      locks_((layout_.coordinates() + kPieceCoordinates - 1) / kPieceCoordinates),
      rounds_(locks_.size()) {}

uint64_t MasterReplica::Count(uint64_t piece) const {
  return std::min(kPieceCoordinates, coordinates() - First(piece));
}

uint64_t MasterReplica::Apply(const CommitRecord& record) {
  SIGNVOTE_CHECK(record.rho == 1.0f);
  uint64_t digest = 0;
  for (uint64_t p = 0; p < pieces(); ++p) {
    float* x = x_.get() + First(p);
    MutexLock lock(&locks_[p]);
    SIGNVOTE_CHECK(rounds_[p] == record.round);
    ApplyStep(layout_, record.gamma, First(p), Count(p), record.verdict.get(), 0, x);
    rounds_[p] = record.round.next();
    if (record.digest_due) digest += ReplicaDigest(x, First(p), Count(p));
  }
  return digest;
}

Round MasterReplica::CopyPiece(uint64_t p, float* out) const {
  MutexLock lock(&locks_[p]);
  std::memcpy(out, x_.get() + First(p), Count(p) * sizeof(float));
  return rounds_[p];
}

uint64_t MasterReplica::Digest() const { return ReplicaDigest(x_.get(), 0, coordinates()); }

absl::Status ExportReplica(FileSystem* fs, const std::string& path, const Layout& layout,
                           std::span<const float> x,
                           const std::map<std::string, std::string>& metadata,
                           const std::string& config_json) {
  SIGNVOTE_RETURN_IF_ERROR(WriteSafetensors(fs, path, layout, x, metadata));
  if (config_json.empty()) return absl::OkStatus();
  return WriteFileAtomically(fs, FolderOf(path) + "config.json", config_json, 0644);
}

}  // namespace signvote
