#include "server/store/job_log.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/format.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "qlora/v1/job.pb.h"

namespace qlora::server {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = 256 << 10;
constexpr LogKind kLogKinds[] = {LogKind::kMetrics, LogKind::kLogs,
                                 LogKind::kEvents};

// A line that a crash cut off is ended, so that the next one stands alone.
bool EndsTorn(int fd, int64_t size) {
  char last = '\n';
  return size > 0 && ::pread(fd, &last, 1, size - 1) == 1 && last != '\n';
}

std::string ToLine(const google::protobuf::Message& message) {
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  // Fails only for Any and malformed times, which these messages lack.
  (void)google::protobuf::util::MessageToJsonString(message, &line, options);
  line += '\n';
  return line;
}

// Marks the directory of a job that is not known, from its time of change on.
constexpr char kUnknown[] = "unknown";

// How the text of the line begins that Truncated makes.
constexpr char kTruncated[] = "log truncated at ";

// The last line of a log that is full; `last` is the one before it.
std::string Truncated(const google::protobuf::Message& last,
                      int64_t max_bytes) {
  qlora::v1::LogLine line;
  if (const auto* before =
          google::protobuf::DynamicCastToGenerated<qlora::v1::LogLine>(&last)) {
    line = *before;
  }
  line.set_level("warning");
  line.set_text(absl::StrCat(kTruncated, FormatBytes(max_bytes),
                             " (--job-log-limit of qlora-coordinator)"));
  return ToLine(line);
}

bool EndsTruncated(int fd, int64_t size) {
  // Such a line is shorter.
  std::string tail(static_cast<size_t>(std::min<int64_t>(size, 1024)), '\0');
  if (::pread(fd, tail.data(), tail.size(),
              size - static_cast<int64_t>(tail.size())) <= 0) {
    return false;
  }
  if (tail.back() != '\n') return false;
  tail.pop_back();
  return tail.find(absl::StrCat("\"text\":\"", kTruncated),
                   tail.rfind('\n') + 1) != std::string::npos;
}

// Puts the part of the file that ends at `begin` before `text`.
absl::Status Prepend(int fd, const std::string& path, std::string& text,
                     int64_t& begin) {
  std::string part(static_cast<size_t>(std::min<int64_t>(kChunkBytes, begin)),
                   '\0');
  const int64_t at = begin - static_cast<int64_t>(part.size());
  const ssize_t n = ::pread(fd, part.data(), part.size(), at);
  if (n < 0) return ErrnoToStatus(errno, path);
  if (static_cast<size_t>(n) != part.size()) {
    return absl::UnavailableError(absl::StrCat(path, ": became shorter"));
  }
  text.insert(0, part);
  begin = at;
  return absl::OkStatus();
}

}  // namespace

std::string JobLog::Path(const std::string& job_id, LogKind kind) const {
  const char* name = kind == LogKind::kMetrics ? "metrics"
                     : kind == LogKind::kLogs  ? "logs"
                                               : "events";
  return absl::StrCat(directory_, "/", job_id, "/", name, ".jsonl");
}

absl::Status JobLog::Append(const std::string& job_id, LogKind kind,
                            const google::protobuf::Message& message) {
  std::string line = ToLine(message);
  const std::string path = Path(job_id, kind);
  MutexLock lock(&mu_);
  const bool first = !seen_.contains(path);
  if (first) {
    RETURN_IF_ERROR(CreateDirectories(absl::StrCat(directory_, "/", job_id)));
  }
  const UniqueFd fd(
      ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoToStatus(errno, path);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoToStatus(errno, path);
  if (kind == LogKind::kLogs) {
    if (info.st_size >= max_log_bytes_) {
      // Of a start with a higher limit it may lack its last line.
      if (!first || EndsTruncated(fd.get(), info.st_size)) {
        seen_.insert(path);
        return absl::OkStatus();
      }
      line.clear();
    }
    if (info.st_size + static_cast<int64_t>(line.size()) >= max_log_bytes_) {
      line += Truncated(message, max_log_bytes_);
    }
  }
  if (EndsTorn(fd.get(), info.st_size)) line.insert(0, "\n");
  RETURN_IF_ERROR(WriteAll(fd.get(), line, path));
  seen_.insert(path);
  dirty_.insert(path);
  return absl::OkStatus();
}

absl::StatusOr<JobLog::Chunk> JobLog::Read(const std::string& job_id,
                                           LogKind kind, int64_t offset) const {
  Chunk chunk;
  const std::string path = Path(job_id, kind);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) {
    return errno == ENOENT ? absl::StatusOr<Chunk>(chunk)
                           : ErrnoToStatus(errno, path);
  }
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoToStatus(errno, path);
  offset = std::min<int64_t>(offset, info.st_size);
  chunk.next_offset = offset;
  std::string buffer(kChunkBytes, '\0');
  ssize_t n = 0;
  size_t end = std::string::npos;
  // A line longer than a chunk is read whole.
  for (;; buffer.resize(buffer.size() * 2)) {
    n = ::pread(fd.get(), buffer.data(), buffer.size(), offset);
    if (n < 0) return ErrnoToStatus(errno, path);
    end = std::string_view(buffer.data(), static_cast<size_t>(n)).rfind('\n');
    if (end != std::string::npos || static_cast<size_t>(n) < buffer.size()) {
      break;
    }
  }
  if (end == std::string::npos) return chunk;
  size_t begin = 0;
  while (begin <= end) {
    const size_t next = buffer.find('\n', begin);
    if (next > begin) chunk.lines.push_back(buffer.substr(begin, next - begin));
    begin = next + 1;
  }
  chunk.next_offset = offset + static_cast<int64_t>(end) + 1;
  return chunk;
}

absl::StatusOr<int64_t> JobLog::TailOffset(
    const std::string& job_id, LogKind kind, int64_t lines,
    const std::function<bool(const std::string&)>& wanted) const {
  const std::string path = Path(job_id, kind);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) {
    return errno == ENOENT ? absl::StatusOr<int64_t>(0)
                           : ErrnoToStatus(errno, path);
  }
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return ErrnoToStatus(errno, path);
  // The file from `begin` to the end of the last line not looked at yet.
  std::string text;
  int64_t begin = info.st_size;
  // What stands after the last line's end was cut off, or is being written.
  bool whole = false;
  while (true) {
    const size_t newline = text.rfind('\n');
    if (newline == std::string::npos && begin > 0) {
      RETURN_IF_ERROR(Prepend(fd.get(), path, text, begin));
      continue;
    }
    const size_t start = newline == std::string::npos ? 0 : newline + 1;
    if (whole && start < text.size() && wanted(text.substr(start)) &&
        --lines <= 0) {
      return begin + static_cast<int64_t>(start);
    }
    if (newline == std::string::npos) return 0;
    text.resize(newline);
    whole = true;
  }
}

void JobLog::Sync() {
  std::set<std::string> dirty;
  {
    MutexLock lock(&mu_);
    dirty.swap(dirty_);
  }
  for (const std::string& path : dirty) {
    if (absl::Status status = SyncPath(path);
        !status.ok() && !absl::IsNotFound(status)) {
      LogWarning("job log not synced", {{"path", path}, {"error", status}});
    }
  }
}

void JobLog::Remove(const std::string& job_id) {
  MutexLock lock(&mu_);
  for (const LogKind kind : kLogKinds) {
    seen_.erase(Path(job_id, kind));
    dirty_.erase(Path(job_id, kind));
  }
  const absl::Status status =
      RemoveRecursively(absl::StrCat(directory_, "/", job_id));
  if (!status.ok()) {
    LogWarning("job files not removed", {{"job", job_id}, {"error", status}});
  }
}

void JobLog::Collect(const std::set<std::string>& job_ids, absl::Time since) {
  const time_t limit = absl::ToTimeT(since);
  std::error_code error;
  std::vector<std::string> old;
  for (fs::directory_iterator job(directory_, error), end; job != end;
       job.increment(error)) {
    const std::string id = job->path().filename().string();
    if (!absl::StartsWith(id, "j-")) continue;
    const std::string unknown = job->path() / kUnknown;
    struct stat info;
    if (job_ids.contains(id)) {
      ::unlink(unknown.c_str());
    } else if (::stat(unknown.c_str(), &info) != 0) {
      // Where that fails the next call tries again.
      const UniqueFd fd(
          ::open(unknown.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    } else if (info.st_mtime < limit) {
      old.push_back(id);
    }
  }
  for (const std::string& id : old) Remove(id);
  if (!old.empty()) {
    LogInfo("files of unknown jobs removed", {{"count", old.size()}});
  }
}

}  // namespace qlora::server
