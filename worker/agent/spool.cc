#include "worker/agent/spool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/crc32c.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::agent {
namespace {

constexpr int64_t kHeaderBytes = 8;
constexpr int64_t kNumberBytes = 9;
// Less than the coordinator takes in one message, with what is around it.
constexpr int64_t kMaxPayload = (int64_t{4} << 20) - 1024;
constexpr int64_t kReserveBytes = int64_t{1} << 20;
constexpr char kPrefix[] = "events-";

template <typename T>
void PutLittleEndian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<char>(value >> (8 * i)));
  }
}

template <typename T>
T GetLittleEndian(const char* bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  }
  return value;
}

std::string EncodeRecord(uint8_t kind, uint64_t number,
                         std::string_view payload) {
  std::string body;
  body.push_back(static_cast<char>(kind));
  PutLittleEndian(body, number);
  body.append(payload);
  std::string record;
  PutLittleEndian(record, static_cast<uint32_t>(body.size()));
  PutLittleEndian(record, Crc32c(body));
  return record + body;
}

absl::Status WriteAt(int fd, std::string_view bytes, int64_t offset,
                     const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoToStatus(errno, path);
    }
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAt(int fd, size_t size, int64_t offset,
                                   const std::string& path) {
  std::string bytes(size, '\0');
  const ssize_t n = ::pread(fd, bytes.data(), size, offset);
  if (n < 0) return ErrnoToStatus(errno, path);
  if (static_cast<size_t>(n) != size) {
    return absl::DataLossError(absl::StrCat(path, ": cut off"));
  }
  return bytes;
}

}  // namespace

struct Spool::Segment {
  Segment(uint64_t first_number, std::string file)
      : first(first_number), path(std::move(file)) {}
  ~Segment() {
    if (fd >= 0) ::close(fd);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  uint64_t end() const { return first + entries.size(); }
  // Again: the file that bears its name now. After an error it has what it had.
  absl::Status Open() {
    const int opened = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (opened < 0) return ErrnoToStatus(errno, path);
    if (fd >= 0) ::close(fd);
    fd = opened;
    return absl::OkStatus();
  }
  // Opens the file and fills entries from it, up to the last whole record.
  absl::Status Load() {
    RETURN_IF_ERROR(Open());
    ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
    size_t at = 0;
    while (content.size() - at >= kHeaderBytes + kNumberBytes) {
      const auto length = GetLittleEndian<uint32_t>(&content[at]);
      if (length < kNumberBytes || length > kMaxPayload + kNumberBytes ||
          length > content.size() - at - kHeaderBytes) {
        break;
      }
      const std::string_view body(&content[at + kHeaderBytes], length);
      if (Crc32c(body) != GetLittleEndian<uint32_t>(&content[at + 4])) break;
      if (GetLittleEndian<uint64_t>(body.data() + 1) != end()) break;
      entries.push_back({.offset = static_cast<int64_t>(at),
                         .length = length,
                         .kind = static_cast<Kind>(body[0])});
      at += kHeaderBytes + length;
    }
    size = static_cast<int64_t>(at);
    torn_bytes = static_cast<int64_t>(content.size() - at);
    return absl::OkStatus();
  }

  const uint64_t first;
  const std::string path;
  int fd = -1;
  int64_t size = 0;
  int64_t torn_bytes = 0;
  std::vector<Entry> entries;
};

Spool::Spool(SpoolOptions options) : options_(std::move(options)) {}
Spool::~Spool() = default;

absl::StatusOr<std::unique_ptr<Spool>> Spool::Open(SpoolOptions options) {
  RETURN_IF_ERROR(CreateDirectories(options.directory));
  std::unique_ptr<Spool> spool(new Spool(std::move(options)));
  RETURN_IF_ERROR(spool->Recover());
  return spool;
}

absl::Status Spool::Recover() {
  MutexLock lock(&mu_);
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListFilesRecursively(options_.directory));
  for (const std::string& name : names) {
    // Of a rewrite that a crash cut off.
    if (name.find(".log.tmp-") != name.npos) {
      ::unlink((options_.directory + "/" + name).c_str());
    }
    uint64_t first = 0;
    const std::string digits =
        name.substr(std::min(name.size(), sizeof(kPrefix) - 1), 20);
    if (name.rfind(kPrefix, 0) != 0 || !absl::SimpleAtoi(digits, &first) ||
        options_.directory + "/" + name != SegmentPath(first)) {
      continue;
    }
    auto loaded = std::make_unique<Segment>(first, SegmentPath(first));
    if (const absl::Status read = loaded->Load(); !read.ok()) {
      RETURN_IF_ERROR(MoveAside(*loaded, read));
      continue;
    }
    segments_.push_back(std::move(loaded));
    const Segment& segment = *segments_.back();
    if (segment.torn_bytes == 0) continue;
    LogWarning(
        "spool is damaged, or was cut off by a crash; events from there "
        "on are lost",
        {{"path", segment.path},
         {"offset", segment.size},
         {"bytes", segment.torn_bytes}});
    if (::ftruncate(segment.fd, segment.size) != 0) {
      return ErrnoToStatus(errno, segment.path);
    }
  }
  if (segments_.empty()) RETURN_IF_ERROR(OpenSegmentLocked(1));
  acknowledged_ = segments_.front()->first - 1;
  ReserveLocked();
  return absl::OkStatus();
}

absl::Status Spool::MoveAside(const Segment& segment, const absl::Status& why) {
  const std::string aside = segment.path + ".unreadable";
  if (::rename(segment.path.c_str(), aside.c_str()) != 0) return why;
  LogError("spool segment cannot be read; its events are lost",
           {{"error", why}, {"moved_to", aside}});
  return absl::OkStatus();
}

absl::Status Spool::OpenSegmentLocked(uint64_t first) {
  auto segment = std::make_unique<Segment>(first, SegmentPath(first));
  RETURN_IF_ERROR(segment->Open());
  segments_.push_back(std::move(segment));
  return absl::OkStatus();
}

absl::Status Spool::RotateLocked(uint64_t first) {
  Segment& old = *segments_.back();
  // Only the newest segment may be torn by a crash.
  if (::fdatasync(old.fd) != 0) {
    return failure_ = ErrnoToStatus(errno, old.path);
  }
  RETURN_IF_ERROR(OpenSegmentLocked(first));
  // Without its name on disk, what is synced into it may be lost all the same.
  if (const absl::Status synced = SyncPath(options_.directory); !synced.ok()) {
    failure_ = synced;
  }
  return failure_;
}

absl::StatusOr<uint64_t> Spool::Append(Kind kind, std::string_view payload) {
  if (static_cast<int64_t>(payload.size()) > kMaxPayload) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an event of ", payload.size(), " bytes; at most ", kMaxPayload));
  }
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(failure_);
  absl::Status status;
  if (segments_.back()->size >= options_.segment_bytes) {
    status = RotateLocked(segments_.back()->end());
  }
  if (status.ok()) status = WriteLocked(kind, payload);
  if (absl::IsResourceExhausted(status) && kind == Kind::kState) {
    ::unlink(ReservePath().c_str());
    status = WriteLocked(kind, payload);
  }
  if (!status.ok()) {
    if (kind == Kind::kState) {
      failure_ = status;
    } else {
      ++dropped_;
    }
    return status;
  }
  const uint64_t number = segments_.back()->end() - 1;
  EnforceLimitLocked();
  return number;
}

absl::Status Spool::WriteLocked(Kind kind, std::string_view payload) {
  Segment& segment = *segments_.back();
  const std::string record =
      EncodeRecord(static_cast<uint8_t>(kind), segment.end(), payload);
  absl::Status status = WriteAt(segment.fd, record, segment.size, segment.path);
  if (!status.ok()) {
    // A part that stays behind is overwritten by the next record, or is cut
    // off as torn.
    if (::ftruncate(segment.fd, segment.size) != 0) {
      failure_ = ErrnoToStatus(errno, segment.path);
    }
    return status;
  }
  if (kind == Kind::kState && ::fdatasync(segment.fd) != 0) {
    return failure_ = ErrnoToStatus(errno, segment.path);
  }
  segment.entries.push_back(
      {.offset = segment.size,
       .length = static_cast<uint32_t>(kNumberBytes + payload.size()),
       .kind = kind});
  segment.size += static_cast<int64_t>(record.size());
  return absl::OkStatus();
}

absl::StatusOr<Spool::Record> Spool::Read(uint64_t number) const {
  MutexLock lock(&mu_);
  if (number <= acknowledged_ || number >= segments_.back()->end()) {
    return absl::OutOfRangeError(
        absl::StrCat("event ", number, " is not in the spool"));
  }
  auto it = std::find_if(segments_.rbegin(), segments_.rend(),
                         [&](const auto& s) { return s->first <= number; });
  if (it == segments_.rend() || number >= (*it)->end()) return Record{};
  const Segment& segment = **it;
  const Entry& entry = segment.entries[number - segment.first];
  ASSIGN_OR_RETURN(
      std::string payload,
      ReadAt(segment.fd, entry.length - kNumberBytes,
             entry.offset + kHeaderBytes + kNumberBytes, segment.path));
  return Record{.kind = entry.kind, .payload = std::move(payload)};
}

void Spool::Acknowledge(uint64_t number) {
  MutexLock lock(&mu_);
  const uint64_t last = segments_.back()->end() - 1;
  acknowledged_ = std::max(acknowledged_, std::min(number, last));
  while (segments_.size() > 1 &&
         segments_.front()->end() <= acknowledged_ + 1) {
    ::unlink(segments_.front()->path.c_str());
    segments_.pop_front();
  }
  // An idle node must not carry its last segment along for ever.
  if (segments_.size() == 1 && acknowledged_ == last &&
      segments_.back()->size > options_.segment_bytes / 4) {
    if (const absl::Status rotated = RotateLocked(last + 1); rotated.ok()) {
      ::unlink(segments_.front()->path.c_str());
      segments_.pop_front();
    } else {
      LogWarning("spool segment cannot be replaced", {{"error", rotated}});
    }
  }
  ReserveLocked();
}

absl::Status Spool::SkipTo(uint64_t next) {
  MutexLock lock(&mu_);
  RETURN_IF_ERROR(failure_);
  if (next <= segments_.back()->end()) return absl::OkStatus();
  return RotateLocked(next);
}

// Over the limit, rewrites segments from the oldest on without their droppable
// payloads. Failing to do so costs disk space only.
void Spool::EnforceLimitLocked() {
  int64_t bytes = BytesLocked();
  for (size_t i = 0; i + 1 < segments_.size() && bytes > options_.max_bytes;
       ++i) {
    const absl::Status status = DropPayloadsLocked(*segments_[i]);
    if (!status.ok()) {
      LogWarning("spool segment cannot be shortened", {{"error", status}});
      return;
    }
    bytes = BytesLocked();
  }
}

absl::Status Spool::DropPayloadsLocked(Segment& segment) {
  const auto droppable = [](const Entry& e) {
    return e.kind == Kind::kDroppable;
  };
  const auto count =
      std::count_if(segment.entries.begin(), segment.entries.end(), droppable);
  if (count == 0) return absl::OkStatus();
  std::string shortened;
  std::vector<Entry> entries = segment.entries;
  for (size_t i = 0; i < entries.size(); ++i) {
    Entry& entry = entries[i];
    std::string record;
    if (droppable(entry)) {
      record = EncodeRecord(static_cast<uint8_t>(Kind::kDropped),
                            segment.first + i, "");
      entry.kind = Kind::kDropped;
      entry.length = kNumberBytes;
    } else {
      ASSIGN_OR_RETURN(record, ReadAt(segment.fd, kHeaderBytes + entry.length,
                                      entry.offset, segment.path));
    }
    entry.offset = static_cast<int64_t>(shortened.size());
    shortened += record;
  }
  RETURN_IF_ERROR(WriteFileAtomically(segment.path, shortened));
  RETURN_IF_ERROR(segment.Open());
  segment.size = static_cast<int64_t>(shortened.size());
  segment.entries = std::move(entries);
  dropped_ += static_cast<uint64_t>(count);
  return absl::OkStatus();
}

void Spool::ReserveLocked() {
  struct stat info;
  if (::stat(ReservePath().c_str(), &info) == 0) return;
  const int fd =
      ::open(ReservePath().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return;
  const bool allocated = ::posix_fallocate(fd, 0, kReserveBytes) == 0;
  ::close(fd);
  if (!allocated) ::unlink(ReservePath().c_str());
}

int64_t Spool::BytesLocked() const {
  int64_t bytes = 0;
  for (const auto& segment : segments_) bytes += segment->size;
  return bytes;
}

uint64_t Spool::first() const {
  MutexLock lock(&mu_);
  return std::min(acknowledged_ + 1, segments_.back()->end());
}

uint64_t Spool::next() const {
  MutexLock lock(&mu_);
  return segments_.back()->end();
}

int64_t Spool::bytes() const {
  MutexLock lock(&mu_);
  return BytesLocked();
}

uint64_t Spool::dropped() const {
  MutexLock lock(&mu_);
  return dropped_;
}

std::string Spool::SegmentPath(uint64_t first) const {
  return absl::StrFormat("%s/%s%020d.log", options_.directory, kPrefix, first);
}

std::string Spool::ReservePath() const {
  return options_.directory + "/reserve";
}

}  // namespace qlora::agent
