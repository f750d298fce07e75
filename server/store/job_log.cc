#include "server/store/job_log.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace qlora::server {
namespace {

constexpr size_t kChunkBytes = 256 << 10;

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// A line that a crash cut off is ended, so that the next one stands alone.
bool EndsTorn(int fd) {
  struct stat info;
  if (::fstat(fd, &info) != 0 || info.st_size == 0) return false;
  char last = '\n';
  return ::pread(fd, &last, 1, info.st_size - 1) == 1 && last != '\n';
}

absl::Status AppendText(int fd, const std::string& text,
                        const std::string& path) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, path);
    done += static_cast<size_t>(n);
  }
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
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  // Fails only for Any and malformed times, which these messages lack.
  (void)google::protobuf::util::MessageToJsonString(message, &line, options);
  line += '\n';
  const std::string path = Path(job_id, kind);
  MutexLock lock(&mu_);
  const bool first = seen_.insert(path).second;
  if (first)
    RETURN_IF_ERROR(CreateDirectories(absl::StrCat(directory_, "/", job_id)));
  const Fd fd(
      ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoToStatus(errno, path);
  if (EndsTorn(fd.get())) line.insert(0, "\n");
  RETURN_IF_ERROR(AppendText(fd.get(), line, path));
  dirty_.insert(path);
  return absl::OkStatus();
}

absl::StatusOr<JobLog::Chunk> JobLog::Read(const std::string& job_id,
                                           LogKind kind, int64_t offset) const {
  Chunk chunk{{}, offset};
  const std::string path = Path(job_id, kind);
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) {
    return errno == ENOENT ? absl::StatusOr<Chunk>(chunk)
                           : ErrnoToStatus(errno, path);
  }
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
  std::deque<int64_t> starts;
  int64_t offset = 0;
  while (true) {
    ASSIGN_OR_RETURN(const Chunk chunk, Read(job_id, kind, offset));
    if (chunk.next_offset == offset) break;
    for (const std::string& line : chunk.lines) {
      if (wanted(line)) {
        starts.push_back(offset);
        if (static_cast<int64_t>(starts.size()) > lines) starts.pop_front();
      }
      offset += static_cast<int64_t>(line.size()) + 1;
    }
    offset = chunk.next_offset;
  }
  return static_cast<int64_t>(starts.size()) < lines ? 0 : starts.front();
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
  for (const LogKind kind :
       {LogKind::kMetrics, LogKind::kLogs, LogKind::kEvents}) {
    seen_.erase(Path(job_id, kind));
    dirty_.erase(Path(job_id, kind));
  }
  const absl::Status status =
      RemoveRecursively(absl::StrCat(directory_, "/", job_id));
  if (!status.ok()) {
    LogWarning("job files not removed", {{"job", job_id}, {"error", status}});
  }
}

}  // namespace qlora::server
