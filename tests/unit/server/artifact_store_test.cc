#include "server/store/artifact_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "absl/time/clock.h"
#include "core_harness.h"

namespace qlora::server {
namespace {

class ArtifactStoreTest : public ::testing::Test {
 protected:
  ArtifactStoreTest() : store_(ArtifactStore::Open(dir_.path()).value()) {}

  absl::Status Put(const std::string& content) {
    auto upload = store_->BeginUpload(Sha256Hex(content),
                                      static_cast<int64_t>(content.size()));
    if (!upload.ok()) return upload.status();
    if (absl::Status status = (*upload)->Append(0, content); !status.ok()) {
      return status;
    }
    return (*upload)->Finish();
  }

  TempDir dir_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(ArtifactStoreTest, Upload_IsReadBack) {
  const std::string content(3 << 20, 'q');
  ASSERT_TRUE(Put(content).ok());
  const auto info = store_->Stat(Sha256Hex(content)).value();
  EXPECT_TRUE(info.complete);
  EXPECT_EQ(info.size_bytes, 3 << 20);
  auto reader = store_->OpenRead(Sha256Hex(content)).value();
  std::string read;
  for (std::string part = "-"; !part.empty(); read += part) {
    part = reader->Read(static_cast<int64_t>(read.size()), 1000000).value();
  }
  EXPECT_TRUE(read == content);
}

TEST_F(ArtifactStoreTest, EmptyArtifact_IsStored) {
  ASSERT_TRUE(Put("").ok());
  EXPECT_TRUE(store_->Stat(Sha256Hex("")).value().complete);
}

TEST_F(ArtifactStoreTest, SecondUpload_SucceedsWithoutWriting) {
  ASSERT_TRUE(Put("content").ok());
  EXPECT_TRUE(Put("content").ok());
}

TEST_F(ArtifactStoreTest, BrokenUpload_GoesOnWhereItEnded) {
  const std::string content = "0123456789";
  const std::string digest = Sha256Hex(content);
  {
    auto upload = store_->BeginUpload(digest, 10).value();
    ASSERT_TRUE(upload->Append(0, "0123").ok());
  }
  EXPECT_EQ(store_->Stat(digest).value().size_bytes, 4);
  EXPECT_FALSE(store_->Stat(digest).value().complete);
  auto upload = store_->BeginUpload(digest, 10).value();
  EXPECT_EQ(upload->Append(0, "0123").code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(upload->Append(4, "456789").ok());
  ASSERT_TRUE(upload->Finish().ok());
  EXPECT_TRUE(store_->Stat(digest).value().complete);
}

TEST_F(ArtifactStoreTest, WrongContent_IsDataLossAndStartsAnew) {
  const std::string digest = Sha256Hex("right");
  {
    auto upload = store_->BeginUpload(digest, 5).value();
    ASSERT_TRUE(upload->Append(0, "wrong").ok());
    EXPECT_EQ(upload->Finish().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(store_->Stat(digest).value().size_bytes, 0);
  EXPECT_TRUE(Put("right").ok());
}

TEST_F(ArtifactStoreTest, BadRequests_AreRefused) {
  EXPECT_EQ(store_->Stat("../../etc/passwd").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->BeginUpload("AB", 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->BeginUpload(Sha256Hex("x"), -1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->OpenRead(Sha256Hex("absent")).status().code(),
            absl::StatusCode::kNotFound);
  auto upload = store_->BeginUpload(Sha256Hex("x"), 1).value();
  EXPECT_EQ(upload->Append(0, "xy").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(upload->Finish().code(), absl::StatusCode::kOutOfRange);
}

TEST_F(ArtifactStoreTest, OneUploadAtATime) {
  const std::string digest = Sha256Hex("abc");
  auto first = store_->BeginUpload(digest, 3).value();
  EXPECT_EQ(store_->BeginUpload(digest, 3).status().code(),
            absl::StatusCode::kUnavailable);
  first.reset();
  EXPECT_TRUE(store_->BeginUpload(digest, 3).ok());
}

TEST_F(ArtifactStoreTest, FlippedByte_IsFoundAndPutAside) {
  const std::string content(100000, 'a');
  ASSERT_TRUE(Put(content).ok());
  const std::string digest = Sha256Hex(content);
  std::fstream file(store_->PathOf(digest).value(),
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.put('b');
  file.close();
  auto reader = store_->OpenRead(digest).value();
  EXPECT_EQ(reader->Read(0, 1 << 20).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_FALSE(store_->Stat(digest).value().complete);
  EXPECT_TRUE(Put(content).ok());
}

TEST_F(ArtifactStoreTest, Collect_KeepsReferencedAndRecent) {
  ASSERT_TRUE(Put("kept").ok());
  ASSERT_TRUE(Put("gone").ok());
  const absl::Time later = absl::Now() + absl::Hours(1);
  EXPECT_EQ(store_->Collect({}, absl::Now() - absl::Hours(1)), 0);
  EXPECT_EQ(store_->Collect({Sha256Hex("kept")}, later), 1);
  EXPECT_TRUE(store_->Stat(Sha256Hex("kept")).value().complete);
  EXPECT_FALSE(store_->Stat(Sha256Hex("gone")).value().complete);
}

// A file size limit stands in for the disk's end; in a child, since the limit
// holds for the process.
TEST_F(ArtifactStoreTest, FullDisk_IsSaidAndRecoversWhenThereIsSpace) {
  const std::string content(200000, 'z');
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100000, 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(Put(content).code() == absl::StatusCode::kResourceExhausted ? 0
                                                                        : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  const std::string digest = Sha256Hex(content);
  const auto info = store_->Stat(digest).value();
  EXPECT_FALSE(info.complete);
  auto upload = store_->BeginUpload(digest, 200000).value();
  ASSERT_TRUE(
      upload->Append(info.size_bytes, content.substr(info.size_bytes)).ok());
  EXPECT_TRUE(upload->Finish().ok());
}

}  // namespace
}  // namespace qlora::server
