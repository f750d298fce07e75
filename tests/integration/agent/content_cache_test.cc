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

#include "common/base/sha256.h"
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
  store.PauseDownloads(true);
  Cancellation first, second;
  auto downloads = std::async(std::launch::async, [&] {
    return cache_->Place(file, directory_ + "/a", client, first);
  });
  while (store.downloads() == 0) std::this_thread::yield();
  auto waits = std::async(std::launch::async, [&] {
    return cache_->Place(file, directory_ + "/b", client, second);
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

}  // namespace
}  // namespace qlora::agent
