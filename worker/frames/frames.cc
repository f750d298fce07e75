#include "worker/frames/frames.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora {
namespace {

constexpr size_t kHeaderBytes = 4;

absl::Status SendAll(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return absl::UnavailableError(
          ErrnoToStatus(errno, "sending a frame").message());
    }
    data += n;
    size -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

// Reads up to size bytes; fewer only at the end of the stream.
absl::StatusOr<size_t> ReadUpTo(int fd, char* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t n = read(fd, data + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return absl::UnavailableError(
          ErrnoToStatus(errno, "reading a frame").message());
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

}  // namespace

absl::StatusOr<std::string> EncodeFrame(
    const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  if (size > kMaxFrameBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        message.GetTypeName(), " of ", size,
        " bytes is larger than a frame may be (", kMaxFrameBytes, " bytes)"));
  }
  std::string frame(kHeaderBytes, '\0');
  for (size_t i = 0; i < kHeaderBytes; ++i) {
    frame[i] = static_cast<char>(size >> (8 * i));
  }
  message.AppendToString(&frame);
  return frame;
}

absl::Status WriteFrame(int fd, const google::protobuf::MessageLite& message) {
  ASSIGN_OR_RETURN(const std::string frame, EncodeFrame(message));
  return SendAll(fd, frame.data(), frame.size());
}

absl::StatusOr<bool> ReadFrame(int fd, google::protobuf::MessageLite* message) {
  unsigned char header[kHeaderBytes];
  ASSIGN_OR_RETURN(size_t got,
                   ReadUpTo(fd, reinterpret_cast<char*>(header), kHeaderBytes));
  if (got == 0) return false;
  uint32_t size = 0;
  for (size_t i = 0; i < kHeaderBytes; ++i) {
    size |= static_cast<uint32_t>(header[i]) << (8 * i);
  }
  if (got == kHeaderBytes && size > kMaxFrameBytes) {
    return absl::DataLossError(absl::StrCat("a frame claims ", size,
                                            " bytes; at most ", kMaxFrameBytes,
                                            " are allowed"));
  }
  std::string body(got == kHeaderBytes ? size : 0, '\0');
  if (got == kHeaderBytes) {
    ASSIGN_OR_RETURN(got, ReadUpTo(fd, body.data(), body.size()));
    got += kHeaderBytes;
  }
  if (got < kHeaderBytes + body.size()) {
    return absl::UnavailableError("the connection ended inside a frame");
  }
  if (!message->ParseFromString(body)) {
    return absl::DataLossError(absl::StrCat(
        "a frame of ", size, " bytes is no ", message->GetTypeName()));
  }
  return true;
}

}  // namespace qlora
