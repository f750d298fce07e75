#include "worker/agent/spool.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "gtest/gtest.h"

namespace qlora::agent {
namespace {

namespace fs = std::filesystem;
using Kind = Spool::Kind;

class SpoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/qlora-spool-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    options_.directory = path;
  }
  void TearDown() override { fs::remove_all(options_.directory); }

  std::unique_ptr<Spool> Open() {
    auto spool = Spool::Open(options_);
    EXPECT_TRUE(spool.ok()) << spool.status();
    return spool.ok() ? *std::move(spool) : nullptr;
  }
  std::vector<fs::path> Segments() {
    std::vector<fs::path> paths;
    for (const auto& e : fs::directory_iterator(options_.directory)) {
      if (e.path().extension() == ".log") paths.push_back(e.path());
    }
    std::sort(paths.begin(), paths.end());
    return paths;
  }

  SpoolOptions options_;
};

TEST_F(SpoolTest, Append_NumbersFromOneAndReadsBack) {
  const auto spool = Open();
  EXPECT_EQ(*spool->Append(Kind::kState, "a"), 1u);
  EXPECT_EQ(*spool->Append(Kind::kDroppable, ""), 2u);
  EXPECT_EQ(spool->Read(1)->payload, "a");
  EXPECT_EQ(spool->Read(2)->payload, "");
  EXPECT_TRUE(absl::IsOutOfRange(spool->Read(3).status()));
  EXPECT_TRUE(absl::IsOutOfRange(spool->Read(0).status()));
}

TEST_F(SpoolTest, EventLargerThanAMessage_IsRefusedAndTheSpoolGoesOn) {
  const auto spool = Open();
  EXPECT_TRUE(absl::IsInvalidArgument(
      spool->Append(Kind::kState, std::string(4 << 20, 'x')).status()));
  EXPECT_EQ(*spool->Append(Kind::kState, std::string(4'000'000, 'x')), 1u);
}

TEST_F(SpoolTest, Reopened_KeepsRecordsAndNumbers) {
  Open()->Append(Kind::kState, "one").IgnoreError();
  {
    const auto spool = Open();
    EXPECT_EQ(spool->Read(1)->payload, "one");
    EXPECT_EQ(*spool->Append(Kind::kState, "two"), 2u);
    spool->Acknowledge(2);
  }
  const auto spool = Open();
  EXPECT_EQ(*spool->Append(Kind::kState, "three"), 3u);
}

// A kill -9 may come while a segment is written anew.
TEST_F(SpoolTest, RestOfARewrite_IsRemoved) {
  Open()->Append(Kind::kState, "one").IgnoreError();
  const fs::path rest = Segments().at(0).string() + ".tmp-12345678";
  std::ofstream(rest) << "half a segm";
  const auto spool = Open();
  EXPECT_EQ(spool->Read(1)->payload, "one");
  EXPECT_FALSE(fs::exists(rest));
}

TEST_F(SpoolTest, AckedAndRotated_NumbersSurviveAnEmptySpool) {
  options_.segment_bytes = 64;
  {
    const auto spool = Open();
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(spool->Append(Kind::kState, "payload").ok());
    }
    spool->Acknowledge(20);
    EXPECT_EQ(spool->first(), 21u);
    EXPECT_EQ(Segments().size(), 1u);
  }
  const auto spool = Open();
  EXPECT_EQ(spool->next(), 21u);
  EXPECT_EQ(*spool->Append(Kind::kState, "x"), 21u);
}

// Every way in which a crash can tear the last record.
TEST_F(SpoolTest, TornTail_AtEveryByte_KeepsWholeRecords) {
  {
    const auto spool = Open();
    ASSERT_TRUE(spool->Append(Kind::kState, "first").ok());
    ASSERT_TRUE(spool->Append(Kind::kState, "second").ok());
  }
  const fs::path segment = Segments().at(0);
  std::ifstream in(segment, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const size_t first_end = 8 + 9 + 5;
  for (size_t cut = first_end; cut < whole.size(); ++cut) {
    std::ofstream(segment, std::ios::binary) << whole.substr(0, cut);
    const auto spool = Open();
    ASSERT_EQ(spool->next(), 2u) << cut;
    EXPECT_EQ(spool->Read(1)->payload, "first");
    EXPECT_EQ(*spool->Append(Kind::kState, "again"), 2u);
    EXPECT_EQ(spool->Read(2)->payload, "again");
  }
}

TEST_F(SpoolTest, FlippedByte_IsNotReturned) {
  {
    const auto spool = Open();
    ASSERT_TRUE(spool->Append(Kind::kState, "first").ok());
    ASSERT_TRUE(spool->Append(Kind::kState, "second").ok());
  }
  const fs::path segment = Segments().at(0);
  std::ifstream in(segment, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (size_t at = 8 + 9 + 5; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    std::ofstream(segment, std::ios::binary) << damaged;
    const auto spool = Open();
    EXPECT_EQ(spool->next(), 2u) << at;
  }
}

// The others are read, and new events go on from the newest number.
TEST_F(SpoolTest, UnreadableSegment_IsMovedAside) {
  options_.segment_bytes = 32;
  {
    const auto spool = Open();
    for (const char* payload : {"one", "two", "three", "four"}) {
      ASSERT_TRUE(spool->Append(Kind::kState, payload).ok());
    }
  }
  const std::vector<fs::path> segments = Segments();
  ASSERT_EQ(segments.size(), 2u);
  fs::remove(segments[0]);
  // Opens, but cannot be read from its beginning, even by root.
  fs::create_symlink("/proc/self/mem", segments[0]);
  const auto spool = Open();
  ASSERT_NE(spool, nullptr);
  EXPECT_EQ(spool->first(), 3u);
  EXPECT_EQ(spool->Read(4)->payload, "four");
  EXPECT_EQ(*spool->Append(Kind::kState, "five"), 5u);
  EXPECT_TRUE(fs::is_symlink(segments[0].string() + ".unreadable"));
}

TEST_F(SpoolTest, OverTheLimit_DropsOldestDroppablePayloadsOnly) {
  options_.segment_bytes = 1000;
  options_.max_bytes = 5000;
  const std::string payload(100, 'x');
  const auto spool = Open();
  for (int i = 1; i <= 100; ++i) {
    const Kind kind = i % 10 == 0 ? Kind::kState : Kind::kDroppable;
    ASSERT_TRUE(spool->Append(kind, payload).ok());
  }
  EXPECT_GT(spool->dropped(), 0u);
  EXPECT_LE(spool->bytes(), options_.max_bytes + options_.segment_bytes);
  EXPECT_EQ(spool->Read(1)->kind, Kind::kDropped);
  EXPECT_EQ(spool->Read(1)->payload, "");
  EXPECT_EQ(spool->Read(99)->payload, payload);
  for (uint64_t i = 10; i <= 100; i += 10) {
    EXPECT_EQ(spool->Read(i)->payload, payload) << i;
  }
  const auto reopened = Open();
  EXPECT_EQ(reopened->next(), 101u);
  EXPECT_EQ(reopened->Read(1)->kind, Kind::kDropped);
  EXPECT_EQ(reopened->Read(10)->payload, payload);
}

TEST_F(SpoolTest, SkipTo_LeavesAGapThatReadsAsDropped) {
  const auto spool = Open();
  ASSERT_TRUE(spool->Append(Kind::kState, "a").ok());
  ASSERT_TRUE(spool->SkipTo(10).ok());
  EXPECT_EQ(*spool->Append(Kind::kState, "b"), 10u);
  EXPECT_EQ(spool->Read(1)->payload, "a");
  EXPECT_EQ(spool->Read(5)->kind, Kind::kDropped);
  EXPECT_EQ(Open()->Read(10)->payload, "b");
  ASSERT_TRUE(spool->SkipTo(3).ok());
  EXPECT_EQ(spool->next(), 11u);
}

TEST_F(SpoolTest, FullDisk_DropsMetricsAndFailsStateForGood) {
  const auto spool = Open();
  ASSERT_TRUE(spool->Append(Kind::kState, "before").ok());
  // A file-size limit stands for a full disk: EFBIG is ResourceExhausted too.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit small = old;
  small.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string payload(1000, 'x');
  EXPECT_TRUE(absl::IsResourceExhausted(
      spool->Append(Kind::kDroppable, payload).status()));
  EXPECT_EQ(spool->dropped(), 1u);
  EXPECT_TRUE(
      absl::IsResourceExhausted(spool->Append(Kind::kState, payload).status()));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  // A failed write of a state record is final, though there is room again.
  EXPECT_FALSE(spool->Append(Kind::kState, "after").ok());
  EXPECT_EQ(Open()->Read(1)->payload, "before");
}

// The stream on which the acknowledgement came goes on.
TEST_F(SpoolTest, NoNewSegment_AcknowledgedEventsGoLater) {
  options_.segment_bytes = 4096;
  const auto spool = Open();
  const std::string payload(2000, 'x');
  ASSERT_TRUE(spool->Append(Kind::kState, payload).ok());
  const std::string old = Segments().at(0);
  const std::string next =
      options_.directory + "/events-" + std::string(19, '0') + "2.log";
  fs::create_directory(next);
  spool->Acknowledge(1);
  EXPECT_EQ(spool->first(), 2u);
  EXPECT_TRUE(fs::exists(old));
  ASSERT_TRUE(spool->Append(Kind::kState, payload).ok());
  EXPECT_EQ(spool->Read(2)->payload, payload);
  spool->Acknowledge(2);
  EXPECT_FALSE(fs::exists(old));
  EXPECT_EQ(*spool->Append(Kind::kState, "after"), 3u);
}

TEST_F(SpoolTest, WritersReaderAndAcks_AtOnce) {
  options_.segment_bytes = 4096;
  const auto spool = Open();
  constexpr uint64_t kEach = 500;
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w) {
    writers.emplace_back([&] {
      for (uint64_t i = 0; i < kEach; ++i) {
        ASSERT_TRUE(spool->Append(Kind::kDroppable, "payload").ok());
      }
    });
  }
  uint64_t next = 1;
  while (next <= 3 * kEach) {
    const auto record = spool->Read(next);
    if (!record.ok()) continue;
    ASSERT_EQ(record->payload, "payload");
    if (next % 100 == 0) spool->Acknowledge(next);
    ++next;
  }
  for (std::thread& writer : writers) writer.join();
  spool->Acknowledge(next - 1);
  EXPECT_EQ(spool->first(), spool->next());
}

}  // namespace
}  // namespace qlora::agent
