// Gangs of real processes over loopback.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/sha256.h"
#include "gtest/gtest.h"
#include "worker/trainer/job_setup.h"
#include "worker/trainer/parallel/agreement.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {
namespace {

struct Listener {
  int fd;
  std::string address;
};

Listener Listen() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(bind(fd, raw, size), 0);
  EXPECT_EQ(listen(fd, 16), 0);
  EXPECT_EQ(getsockname(fd, raw, &size), 0);
  return {fd, absl::StrCat("127.0.0.1:", ntohs(address.sin_port))};
}

// Runs body in one process a rank. What body returns comes back, at most 64
// bytes each; an empty string means that the process died.
std::vector<std::string> RunProcesses(
    int size, const std::function<std::string(Communicator&)>& body) {
  const Listener listener = Listen();
  std::vector<std::pair<pid_t, int>> children;
  for (int rank = 0; rank < size; ++rank) {
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    const pid_t pid = fork();
    if (pid == 0) {
      GlooOptions options{.rank = rank,
                          .world_size = size,
                          .rendezvous_address = listener.address,
                          .listen_fd = rank == 0 ? listener.fd : -1,
                          .prefix = "test",
                          .timeout = absl::Seconds(30)};
      auto communicator = MakeGlooCommunicator(options);
      const std::string result = communicator.ok()
                                     ? body(**communicator)
                                     : communicator.status().ToString();
      (void)!write(fds[1], result.data(), std::min<size_t>(result.size(), 64));
      _exit(0);
    }
    close(fds[1]);
    children.emplace_back(pid, fds[0]);
  }
  close(listener.fd);
  std::vector<std::string> results;
  for (const auto& [pid, fd] : children) {
    char buffer[64];
    const ssize_t n = read(fd, buffer, sizeof(buffer));
    results.emplace_back(buffer, n > 0 ? n : 0);
    close(fd);
    waitpid(pid, nullptr, 0);
  }
  return results;
}

// What ends when every rank is there.
absl::Status Meet(Communicator& c) {
  int64_t nothing = 0;
  return c.AllReduceMax({&nothing, 1});
}

std::string HashOfReducedFloats(Communicator& c) {
  Sha256 hash;
  for (const size_t n : {1, 7, 1024, 100003}) {
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) {
      values[i] = 1.0f / static_cast<float>(1 + i * 7 + c.rank() * 13);
    }
    if (!c.AllReduceSum(std::span(values)).ok()) return "failed";
    hash.Update({reinterpret_cast<const char*>(values.data()), n * 4});
  }
  return hash.HexDigest();
}

TEST(Gloo, AllReduceSum_SameBitsOnAllRanksAndInEveryRun) {
  for (const int size : {2, 3, 4}) {
    const auto first = RunProcesses(size, HashOfReducedFloats);
    const auto second = RunProcesses(size, HashOfReducedFloats);
    EXPECT_EQ(first, second);
    for (const std::string& digest : first) EXPECT_EQ(digest, first[0]);
    EXPECT_TRUE(IsSha256Hex(first[0])) << first[0];
  }
}

std::string EveryCollective(Communicator& c) {
  const int n = c.size();
  std::vector<double> doubles = {1.0 * c.rank()};
  std::vector<int64_t> ints = {c.rank()};
  std::vector<uint8_t> bytes(5, static_cast<uint8_t>(c.rank()));
  std::vector<uint8_t> gathered(bytes.size() * n);
  std::vector<uint8_t> parts;
  if (c.rank() == 1) {
    for (int r = 0; r < n; ++r) parts.push_back(static_cast<uint8_t>(r + 10));
  }
  std::vector<uint8_t> part(1);
  auto pending = c.AllGatherAsync(bytes, gathered);
  absl::Status status = pending.status();
  status.Update(c.AllReduceSum(std::span(doubles)));
  status.Update(c.AllReduceMax(std::span(ints)));
  if (pending.ok()) status.Update((*pending)->Wait());
  status.Update(c.Scatter(parts, part, 1));
  status.Update(c.Broadcast(bytes, 1));
  if (!status.ok()) return status.ToString();
  bool right = doubles[0] == n * (n - 1) / 2.0 && ints[0] == n - 1 &&
               part[0] == c.rank() + 10 && bytes[4] == 1;
  for (size_t i = 0; i < gathered.size(); ++i) right &= gathered[i] == i / 5;
  return right ? "right" : "wrong";
}

TEST(Gloo, EveryCollective_TwoAndThreeProcesses_IsRight) {
  for (const int size : {2, 3}) {
    for (const std::string& result : RunProcesses(size, EveryCollective)) {
      EXPECT_EQ(result, "right");
    }
  }
}

std::string DieOrReport(Communicator& c) {
  if (!Meet(c).ok()) return "no barrier";
  if (c.rank() == 1) raise(SIGKILL);
  const absl::Status status = Meet(c);
  return absl::StatusCodeToString(status.code());
}

TEST(Gloo, KilledPeer_SurvivorsGetUnavailable) {
  const auto results = RunProcesses(3, DieOrReport);
  EXPECT_EQ(results[0], "UNAVAILABLE");
  EXPECT_EQ(results[1], "");
  EXPECT_EQ(results[2], "UNAVAILABLE");
}

// Rank 0 works three times as long as a collective may take, then is as late
// again without saying so.
std::string WaitForTheLead(Communicator& c) {
  const absl::Duration timeout = absl::Milliseconds(500);
  c.SetTimeout(timeout);
  const absl::Status worked = RunOnLead(c, timeout, [&] {
    absl::SleepFor(3 * timeout);
    return absl::OkStatus();
  });
  if (!worked.ok()) return worked.ToString();
  if (c.rank() == 0) absl::SleepFor(3 * timeout);
  return absl::StatusCodeToString(Meet(c).code());
}

TEST(Gloo, LeadThatWorksForLong_IsWaitedForThatOnce) {
  EXPECT_EQ(RunProcesses(2, WaitForTheLead)[1], "DEADLINE_EXCEEDED");
}

// Rank 0 tokenizes three times as long as a collective may take. What it comes
// to is that its file was not delivered.
std::string LoadLate(Communicator& c) {
  c.SetTimeout(absl::Milliseconds(500));
  JobSpec spec;
  spec.data.train = {{.path = "absent.jsonl", .format = DataFormat::kTokens}};
  if (c.rank() == 0) absl::SleepFor(absl::Milliseconds(1500));
  const auto data = LoadJobDataTogether(v1::TrainerTask(), spec, {}, c);
  return absl::StatusCodeToString(data.status().code());
}

TEST(Gloo, DataThatTakesLong_IsWaitedFor) {
  for (const std::string& result : RunProcesses(2, LoadLate)) {
    EXPECT_EQ(result, "NOT_FOUND");
  }
}

TEST(Gloo, MissingPeer_IsDeadlineExceeded) {
  const Listener listener = Listen();
  GlooOptions options;
  options.world_size = 2;
  options.rendezvous_address = listener.address;
  options.listen_fd = listener.fd;
  options.timeout = absl::Milliseconds(300);
  const auto communicator = MakeGlooCommunicator(options);
  EXPECT_EQ(communicator.status().code(), absl::StatusCode::kDeadlineExceeded)
      << communicator.status();
}

TEST(Gloo, BadAddress_IsInvalidArgument) {
  for (const char* address : {"", "localhost", ":1", "h:", "h:0", "h:99999"}) {
    GlooOptions options;
    options.rendezvous_address = address;
    EXPECT_EQ(MakeGlooCommunicator(options).status().code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
}

}  // namespace
}  // namespace qlora::trainer
