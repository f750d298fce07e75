#include "worker/trainer/parallel/agreement.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace qlora::trainer {
namespace {

// What travels: the code, then length-prefixed texts: the message, and type and
// value of the first payload.
constexpr size_t kMessageBytes = 4096;
using Message = std::array<uint8_t, kMessageBytes>;

class Writer {
 public:
  explicit Writer(Message& message) : message_(message) {}
  void Number(int32_t value) {
    std::memcpy(message_.data() + at_, &value, sizeof(value));
    at_ += sizeof(value);
  }
  void Text(const std::string& text, size_t limit) {
    const size_t size = std::min(text.size(), limit);
    Number(static_cast<int32_t>(size));
    std::memcpy(message_.data() + at_, text.data(), size);
    at_ += size;
  }

 private:
  Message& message_;
  size_t at_ = 0;
};

class Reader {
 public:
  explicit Reader(const Message& message) : message_(message) {}
  int32_t Number() {
    int32_t value = 0;
    std::memcpy(&value, message_.data() + at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }
  std::string Text() {
    const auto size =
        std::min(static_cast<size_t>(Number()), kMessageBytes - at_);
    std::string text(reinterpret_cast<const char*>(message_.data()) + at_,
                     size);
    at_ += size;
    return text;
  }

 private:
  const Message& message_;
  size_t at_ = 0;
};

void Encode(const absl::Status& status, Message& message) {
  Writer writer(message);
  writer.Number(static_cast<int32_t>(status.code()));
  writer.Text(std::string(status.message()), 3000);
  std::string url, value;
  status.ForEachPayload([&](absl::string_view u, const absl::Cord& v) {
    url = std::string(u);
    value = std::string(v);
  });
  writer.Text(url, 200);
  writer.Text(value, 200);
}

absl::Status Decode(const Message& message) {
  Reader reader(message);
  const auto code = static_cast<absl::StatusCode>(reader.Number());
  absl::Status status(code, reader.Text());
  const std::string url = reader.Text();
  if (!url.empty()) status.SetPayload(url, absl::Cord(reader.Text()));
  return status;
}

// What a rank tells of itself; both texts padded with zeros.
struct Holding {
  char digest[64] = {};
  char host[65] = {};
};

}  // namespace

absl::Status AgreeOn(Communicator& communicator, const absl::Status& mine) {
  constexpr int64_t kNobody = std::numeric_limits<int64_t>::min();
  int64_t failed = mine.ok() ? kNobody : -communicator.rank();
  RETURN_IF_ERROR(communicator.AllReduceMax({&failed, 1}));
  if (failed == kNobody) return absl::OkStatus();
  Message message{};
  const int root = static_cast<int>(-failed);
  if (communicator.rank() == root) Encode(mine, message);
  RETURN_IF_ERROR(communicator.Broadcast(message, root));
  return Decode(message);
}

absl::Status CheckSame(Communicator& communicator, std::string_view what,
                       const std::string& digest, std::string_view remedy) {
  Holding mine;
  digest.copy(mine.digest, sizeof(mine.digest));
  gethostname(mine.host, sizeof(mine.host) - 1);
  std::vector<Holding> all(communicator.size());
  RETURN_IF_ERROR(communicator.AllGather(
      {reinterpret_cast<const uint8_t*>(&mine), sizeof(mine)},
      {reinterpret_cast<uint8_t*>(all.data()), all.size() * sizeof(mine)}));
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (std::ranges::equal(all[rank].digest, all[0].digest)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", rank, " on ", all[rank].host,
                     " does not have the same ", std::string(what),
                     " as rank 0 on ", all[0].host, ": ", std::string(remedy)));
  }
  return absl::OkStatus();
}

absl::Status RunOnLead(Communicator& communicator, absl::Duration timeout,
                       const std::function<absl::Status()>& work) {
  communicator.SetTimeout(absl::Hours(24));
  const absl::Status agreed = AgreeOn(
      communicator, communicator.rank() == 0 ? work() : absl::OkStatus());
  communicator.SetTimeout(timeout);
  return agreed;
}

}  // namespace qlora::trainer
