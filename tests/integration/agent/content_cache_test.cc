#include "worker/agent/content_cache.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>

#include "common/base/files.h"
#include "common/base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/agent/artifact_store_fake.h"
#include "worker/agent/coordinator_link.h"

namespace qlora::agent {
namespace {

namespace fs = std::filesystem;

std::string TempDirectory(std::string pattern) {
  pattern += "/qlora-cache-XXXXXX";
  return ::mkdtemp(pattern.data());
}

dev_t DeviceOf(const std::string& path) {
  struct stat info = {};
  ::stat(path.c_str(), &info);
  return info.st_dev;
}

// No file of this process grows beyond that size while this lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  void (*handler_)(int);
};

class ContentCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = TempDirectory("/tmp");
    cache_ = *ContentCache::Open(directory_ + "/cache", 1 << 30);
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string CachePath(const std::string& digest) const {
    return directory_ + "/cache/" + digest.substr(0, 2) + "/" + digest;
  }

  std::string directory_;
  std::unique_ptr<ContentCache> cache_;
};

TEST_F(ContentCacheTest, AnotherDownloadsTheSame_WaitingIsCancelledAtOnce) {
  ArtifactStoreFake store;
  ArtifactClient client(ConnectToCoordinator(store.address()));
  v1::ArtifactFile file;
  file.set_sha256(store.Put("model"));
  file.set_size_bytes(5);
  store.PauseDownloads(true);
  Cancellation first, second;
  auto downloads = std::async(std::launch::async, [&] {
    return cache_->Place(file, ContentCache::Check::kSize, directory_ + "/a",
                         client, first);
  });
  while (store.downloads() == 0) std::this_thread::yield();
  auto waits = std::async(std::launch::async, [&] {
    return cache_->Place(file, ContentCache::Check::kSize, directory_ + "/b",
                         client, second);
  });
  second.Cancel();
  const bool ended =
      waits.wait_for(std::chrono::seconds(5)) == std::future_status::ready;
  store.PauseDownloads(false);
  EXPECT_TRUE(ended);
  EXPECT_TRUE(absl::IsCancelled(waits.get()));
  EXPECT_TRUE(downloads.get().ok());
  EXPECT_TRUE(fs::exists(directory_ + "/a"));
  EXPECT_FALSE(fs::exists(directory_ + "/b"));
}

TEST_F(ContentCacheTest, AdoptThatCannotBeFinished_LeavesNothingOfThatName) {
  const std::string elsewhere = TempDirectory("/dev/shm");
  if (DeviceOf(elsewhere) == DeviceOf(directory_)) {
    fs::remove_all(elsewhere);
    GTEST_SKIP() << "/dev/shm and /tmp are one file system: files are linked";
  }
  const std::string content(1 << 20, 'x');
  const std::string digest = Sha256Hex(content);
  std::ofstream(elsewhere + "/file") << content;
  Cancellation cancellation;
  {
    const FileSizeLimit limit(1 << 19);
    EXPECT_TRUE(absl::IsResourceExhausted(
        cache_->Adopt(elsewhere + "/file", digest, cancellation)));
  }
  EXPECT_FALSE(fs::exists(CachePath(digest)));
  EXPECT_TRUE(cache_->Adopt(elsewhere + "/file", digest, cancellation).ok());
  EXPECT_EQ(*Sha256OfFile(CachePath(digest)), digest);
  fs::remove_all(elsewhere);
}

using Check = ContentCache::Check;

// With a store, and what a full disk or a crash leaves behind in the cache.
class StoredFilesTest : public ::testing::Test {
 protected:
  StoredFilesTest() {
    char path[] = "/tmp/qlora-cache-XXXXXX";
    directory_ = ::mkdtemp(path);
    client_ = std::make_unique<ArtifactClient>(
        ConnectToCoordinator(store_.address()));
    cache_ = *ContentCache::Open(directory_ + "/cache", 1 << 20);
  }
  ~StoredFilesTest() override { fs::remove_all(directory_); }

  v1::ArtifactFile Stored(const std::string& content) {
    v1::ArtifactFile file;
    file.set_path("params.safetensors");
    file.set_sha256(store_.Put(content));
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    return file;
  }
  // What is placed, or the error.
  std::string Place(const v1::ArtifactFile& file, Check check) {
    const std::string to = directory_ + "/placed-" + std::to_string(++placed_);
    const absl::Status status =
        cache_->Place(file, check, to, *client_, cancellation_);
    if (!status.ok()) return status.ToString();
    return ReadFile(to).value();
  }
  std::string CachedPath(const v1::ArtifactFile& file) const {
    return directory_ + "/cache/" + file.sha256().substr(0, 2) + "/" +
           file.sha256();
  }
  // As root may although the file is read-only; a new file, since others may
  // link to the old one.
  void Overwrite(const v1::ArtifactFile& file, const std::string& content) {
    fs::create_directories(fs::path(CachedPath(file)).parent_path());
    fs::remove(CachedPath(file));
    std::ofstream(CachedPath(file)) << content;
  }

  std::string directory_;
  ArtifactStoreFake store_;
  std::unique_ptr<ArtifactClient> client_;
  std::unique_ptr<ContentCache> cache_;
  Cancellation cancellation_;
  int placed_ = 0;
};

TEST_F(StoredFilesTest, WhatIsThere_IsNotDownloadedAgain) {
  const v1::ArtifactFile file = Stored("abc");
  EXPECT_EQ(Place(file, Check::kSize), "abc");
  EXPECT_EQ(Place(file, Check::kDigest), "abc");
  EXPECT_EQ(store_.downloads(), 1);
}

TEST_F(StoredFilesTest, TruncatedFile_IsDownloadedAnew) {
  const v1::ArtifactFile file = Stored("a whole checkpoint");
  Overwrite(file, "a whole");
  EXPECT_EQ(Place(file, Check::kSize), "a whole checkpoint");
  EXPECT_EQ(store_.downloads(), 1);
}

TEST_F(StoredFilesTest, FlippedByte_IsFoundWhereTheContentIsChecked) {
  const v1::ArtifactFile file = Stored("a whole checkpoint");
  Overwrite(file, "a whole chockpoint");
  EXPECT_EQ(Place(file, Check::kDigest), "a whole checkpoint");
  EXPECT_EQ(store_.downloads(), 1);
}

TEST_F(StoredFilesTest, WrongContent_LeavesNoPartToGoOnFrom) {
  const v1::ArtifactFile file = Stored("abc");
  store_.Corrupt(true);
  EXPECT_THAT(Place(file, Check::kSize), testing::HasSubstr("DATA_LOSS"));
  EXPECT_FALSE(fs::exists(CachedPath(file) + ".part"));
  store_.Corrupt(false);
  EXPECT_EQ(Place(file, Check::kSize), "abc");
}

TEST_F(StoredFilesTest, Adopt_KeepsAFileThatGoesElsewhere) {
  v1::ArtifactFile file;
  file.set_sha256(Sha256Hex("staged"));
  file.set_size_bytes(6);
  ASSERT_TRUE(WriteFileAtomically(directory_ + "/staged", "staged").ok());
  ASSERT_TRUE(
      cache_->Adopt(directory_ + "/staged", file.sha256(), cancellation_).ok());
  fs::remove(directory_ + "/staged");
  EXPECT_EQ(Place(file, Check::kDigest), "staged");
  EXPECT_EQ(store_.downloads(), 0);
}

// A node whose jobs download nothing must not keep every checkpoint.
TEST_F(StoredFilesTest, AdoptedBeyondItsLimit_DropsTheOldest) {
  for (int i = 0; i < 4; ++i) {
    const std::string content(600'000, static_cast<char>('a' + i));
    const std::string staged = directory_ + "/staged";
    ASSERT_TRUE(WriteFileAtomically(staged, content).ok());
    const std::string digest = Sha256Hex(content);
    ASSERT_TRUE(cache_->Adopt(staged, digest, cancellation_).ok());
    fs::remove(staged);
  }
  EXPECT_EQ(ListFilesRecursively(directory_ + "/cache")->size(), 1u);
}

TEST_F(StoredFilesTest, BeyondItsLimit_DropsWhatNothingUses) {
  const v1::ArtifactFile old = Stored(std::string(700'000, 'o'));
  EXPECT_EQ(Place(old, Check::kSize).size(), 700'000u);
  // Now only the cache has it.
  fs::remove(directory_ + "/placed-1");
  const v1::ArtifactFile used = Stored(std::string(600'000, 'u'));
  EXPECT_EQ(Place(used, Check::kSize).size(), 600'000u);
  EXPECT_FALSE(fs::exists(CachedPath(old)));
  EXPECT_TRUE(fs::exists(CachedPath(used)));
}

TEST_F(StoredFilesTest, TokensOfRanks_CountAndGoWithTheRest) {
  const v1::ArtifactFile file = Stored(std::string(500'000, 'f'));
  EXPECT_EQ(Place(file, Check::kSize).size(), 500'000u);
  fs::remove(directory_ + "/placed-1");
  const std::string tokens = cache_->token_directory() + "/";
  fs::create_directories(tokens);
  std::ofstream(tokens + "a.tokens") << std::string(400'000, 'a');
  std::ofstream(tokens + "b.tokens") << std::string(400'000, 'b');
  // a was used before the file, b after it.
  const auto now = fs::last_write_time(CachedPath(file));
  fs::last_write_time(tokens + "a.tokens", now - std::chrono::hours(1));
  fs::last_write_time(tokens + "b.tokens", now + std::chrono::hours(1));
  cache_->Trim();
  EXPECT_FALSE(fs::exists(tokens + "a.tokens"));
  EXPECT_TRUE(fs::exists(tokens + "b.tokens"));
  std::ofstream(tokens + "c.tokens") << std::string(400'000, 'c');
  cache_->Trim();
  EXPECT_FALSE(fs::exists(CachedPath(file)));
  EXPECT_TRUE(fs::exists(tokens + "b.tokens"));
}

}  // namespace
}  // namespace qlora::agent
