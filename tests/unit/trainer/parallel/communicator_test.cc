#include "worker/trainer/parallel/communicator.h"

#include <numeric>
#include <thread>

#include "gtest/gtest.h"

namespace qlora::trainer {
namespace {

// Runs body as every rank of a gang, each on its own thread.
void RunGang(int size, const std::function<void(Communicator&)>& body) {
  auto gang = MakeThreadGang(size);
  std::vector<std::thread> threads;
  for (auto& communicator : gang) {
    threads.emplace_back([&] { body(*communicator); });
  }
  for (std::thread& t : threads) t.join();
}

class CommunicatorTest : public ::testing::TestWithParam<int> {};

TEST_P(CommunicatorTest, AllGather_PutsPartsInRankOrder) {
  RunGang(GetParam(), [](Communicator& c) {
    const std::vector<uint8_t> in(3, static_cast<uint8_t>(c.rank()));
    std::vector<uint8_t> out(3 * c.size());
    ASSERT_TRUE(c.AllGather(in, out).ok());
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i / 3);
  });
}

TEST_P(CommunicatorTest, AllReduce_SumsAndMaxima) {
  RunGang(GetParam(), [](Communicator& c) {
    const int n = c.size();
    std::vector<float> floats = {float(c.rank()), 1};
    ASSERT_TRUE(c.AllReduceSum(std::span(floats)).ok());
    EXPECT_EQ(floats, (std::vector<float>{n * (n - 1) / 2.0f, float(n)}));
    std::vector<double> doubles = {double(c.rank())};
    ASSERT_TRUE(c.AllReduceSum(std::span(doubles)).ok());
    EXPECT_EQ(doubles[0], n * (n - 1) / 2.0);
    std::vector<int64_t> ints = {c.rank(), -c.rank()};
    ASSERT_TRUE(c.AllReduceMax(std::span(ints)).ok());
    EXPECT_EQ(ints, (std::vector<int64_t>{n - 1, 0}));
  });
}

TEST_P(CommunicatorTest, BroadcastAndScatter_ComeFromRoot) {
  RunGang(GetParam(), [](Communicator& c) {
    const int root = c.size() - 1;
    std::vector<uint8_t> bytes(4, static_cast<uint8_t>(c.rank()));
    ASSERT_TRUE(c.Broadcast(bytes, root).ok());
    EXPECT_EQ(bytes, std::vector<uint8_t>(4, static_cast<uint8_t>(root)));
    std::vector<uint8_t> in;
    if (c.rank() == root) {
      in.resize(2 * c.size());
      std::iota(in.begin(), in.end(), 0);
    }
    std::vector<uint8_t> out(2);
    ASSERT_TRUE(c.Scatter(in, out, root).ok());
    EXPECT_EQ(out[0], 2 * c.rank());
    EXPECT_EQ(out[1], 2 * c.rank() + 1);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, CommunicatorTest, ::testing::Values(1, 2, 3));

TEST(ThreadGang, PeerGone_CallsFail) {
  auto gang = MakeThreadGang(2);
  std::thread waiting([&] {
    std::vector<int64_t> ints = {1};
    EXPECT_EQ(gang[0]->AllReduceMax(ints).code(),
              absl::StatusCode::kUnavailable);
  });
  gang[1].reset();
  waiting.join();
}

TEST(SingleCommunicator, Copies) {
  const auto c = MakeSingleCommunicator();
  const std::vector<uint8_t> in = {1, 2};
  std::vector<uint8_t> out(2);
  ASSERT_TRUE(c->AllGather(in, out).ok());
  EXPECT_EQ(out, in);
  out.resize(3);
  EXPECT_FALSE(c->AllGather(in, out).ok());
}

}  // namespace
}  // namespace qlora::trainer
