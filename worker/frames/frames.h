// Length-prefixed protobuf messages over a stream socket: how an agent and its
// ranks talk (trainer.proto).
//
//   frame = length:u32 little-endian, message:length bytes; length <= 4 MiB
//
// The functions block. One thread may read while another writes; two threads
// that write must take turns.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message_lite.h"

namespace qlora {

inline constexpr uint32_t kMaxFrameBytes = 4u << 20;

// The bytes of one frame. InvalidArgument: larger than a frame may be.
absl::StatusOr<std::string> EncodeFrame(
    const google::protobuf::MessageLite& message);

// Unavailable: the other side is gone; InvalidArgument: larger than a frame may
// be (nothing was sent).
absl::Status WriteFrame(int fd, const google::protobuf::MessageLite& message);

// False at a clean end, between two frames. Unavailable: the connection broke
// or ended inside a frame; DataLoss: a length above the limit, or bytes that
// are no such message. After an error the stream cannot be used further.
absl::StatusOr<bool> ReadFrame(int fd, google::protobuf::MessageLite* message);

}  // namespace qlora
