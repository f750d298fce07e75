// The events that a coordinator has not acknowledged yet, on disk.
//
// A directory of segments `events-<first number, 20 digits>.log`, each a
// sequence of
//
//   record = length:u32 crc:u32 kind:u8 number:u64 payload:(length - 9) bytes
//
// little-endian; crc is CRC-32C over kind, number and payload. Numbers grow by
// one. What follows the last whole record of the newest segment (a torn write)
// is cut off when the spool is opened; damage elsewhere loses the rest of that
// segment, and its numbers read as dropped. A segment that cannot be read at
// all is renamed to <its name>.unreadable. One whose records are all
// acknowledged is deleted.
//
// State records are synced before Append returns, droppable ones are not. Over
// `max_bytes` the payloads of the oldest droppable records are discarded; the
// records keep their numbers and read as kDropped. State records are never
// discarded. A reserve file gives them room on a full disk.
//
// All methods may be called from any thread; Append of a state record blocks
// for an fsync.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/mutex.h"

namespace qlora::agent {

struct SpoolOptions {
  std::string directory;
  // Above this, droppable payloads go, oldest first.
  int64_t max_bytes = int64_t{256} << 20;
  // A segment that reached this size is closed.
  int64_t segment_bytes = int64_t{4} << 20;
};

class Spool {
 public:
  enum class Kind : uint8_t { kState = 1, kDroppable = 2, kDropped = 3 };

  struct Record {
    Kind kind = Kind::kDropped;
    // Empty when dropped.
    std::string payload;
  };

  // Opens or creates the directory and reads every segment. Errors as
  // common/base/files.h.
  static absl::StatusOr<std::unique_ptr<Spool>> Open(SpoolOptions options);
  ~Spool();
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  // Stores a record and returns its number. A droppable record that the disk
  // has no room for is counted as dropped: ResourceExhausted, and the spool
  // goes on. A failed sync or write of a state record is final: this and every
  // later Append return the error.
  absl::StatusOr<uint64_t> Append(Kind kind, std::string_view payload);

  // The record of that number. OutOfRange if it is not in [first(), next()).
  absl::StatusOr<Record> Read(uint64_t number) const;

  // Forgets records up to and including `number`; more than there are is fine.
  // Disk space that cannot be given back now is given back later.
  void Acknowledge(uint64_t number);

  // Makes the next number at least `next`: the reader knows records that a
  // crash of this machine lost.
  absl::Status SkipTo(uint64_t next);

  // The oldest number held, next() if none.
  uint64_t first() const;
  // The number that the next record will get; from 1.
  uint64_t next() const;
  int64_t bytes() const;
  // Records dropped since the spool was opened.
  uint64_t dropped() const;

 private:
  struct Entry {
    int64_t offset = 0;
    uint32_t length = 0;
    Kind kind = Kind::kDropped;
  };
  struct Segment;

  explicit Spool(SpoolOptions options);
  absl::Status Recover();
  static absl::Status MoveAside(const Segment& segment,
                                const absl::Status& why);
  absl::Status OpenSegmentLocked(uint64_t first)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RotateLocked(uint64_t first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status WriteLocked(Kind kind, std::string_view payload)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status DropPayloadsLocked(Segment& segment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EnforceLimitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int64_t BytesLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReserveLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string SegmentPath(uint64_t first) const;
  std::string ReservePath() const;

  const SpoolOptions options_;

  mutable Mutex mu_;
  // Oldest first; the last one is open for appending.
  std::deque<std::unique_ptr<Segment>> segments_ ABSL_GUARDED_BY(mu_);
  uint64_t acknowledged_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
  // Sticky.
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::agent
