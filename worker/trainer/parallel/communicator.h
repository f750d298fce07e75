// The collectives of a gang. Used by one thread; every rank calls the same
// sequence. After an error the communicator is dead: leave and let the agent
// make a new attempt.
//
// Errors of all methods: Unavailable when a peer or the network is gone,
// DeadlineExceeded when a peer did not answer in time, InvalidArgument for
// buffers whose sizes do not fit each other.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qlora::trainer {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts an AllGather: out has size() * in.size() bytes, rank r's at
  // r * in.size(). Both buffers must live until Wait returns.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual absl::Status Wait() = 0;
  };
  virtual absl::StatusOr<std::unique_ptr<Pending>> AllGatherAsync(
      std::span<const uint8_t> in, std::span<uint8_t> out) = 0;
  // AllGatherAsync and Wait.
  absl::Status AllGather(std::span<const uint8_t> in, std::span<uint8_t> out);
  // Sums in place; the result has the same bits on every rank, and in every
  // run with the same number of ranks.
  virtual absl::Status AllReduceSum(std::span<float> values) = 0;
  virtual absl::Status AllReduceSum(std::span<double> values) = 0;
  virtual absl::Status AllReduceMax(std::span<int64_t> values) = 0;
  virtual absl::Status Broadcast(std::span<uint8_t> bytes, int root) = 0;
  // Rank root sends size() equal parts of `in` (empty elsewhere); every rank
  // receives its own.
  virtual absl::Status Scatter(std::span<const uint8_t> in,
                               std::span<uint8_t> out, int root) = 0;
  // For the calls that follow.
  virtual void SetTimeout(absl::Duration timeout) = 0;
};

// A gang of one: everything is a copy.
std::unique_ptr<Communicator> MakeSingleCommunicator();

// A gang of threads of one process, for tests: element r is rank r's. Sums go
// in rank order. When one communicator is destroyed the others' calls fail with
// Unavailable, as when a process dies.
std::vector<std::unique_ptr<Communicator>> MakeThreadGang(int size);

struct GlooOptions {
  int rank = 0;
  int world_size = 1;
  // "host:port" of rank 0's store.
  std::string rendezvous_address;
  // Rank 0: the listening socket, handed to the store; -1 elsewhere.
  int listen_fd = -1;
  // Interface address for the data connections.
  std::string data_plane_host = "127.0.0.1";
  // Separates attempts in the store.
  std::string prefix;
  // Of the rendezvous and, until SetTimeout, of every collective.
  absl::Duration timeout = absl::Minutes(30);
};

// Blocks until all ranks are there; DeadlineExceeded after the timeout.
absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(
    const GlooOptions& options);

}  // namespace qlora::trainer
