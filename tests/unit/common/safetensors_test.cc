#include "common/formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/base/files.h"
#include "tests/shared_data.h"

namespace qlora {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::span<const uint8_t> Bytes(std::span<const float> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

class SafetensorsTest : public ::testing::Test {
 protected:
  SafetensorsTest() {
    std::string pattern =
        fs::temp_directory_path() / "qlora-safetensors-XXXXXX";
    dir_ = ::mkdtemp(pattern.data());
  }
  ~SafetensorsTest() override { fs::remove_all(dir_); }

  std::string Path(const std::string& name) const { return dir_ + "/" + name; }

  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
    return Path(name);
  }

  static std::string Raw(const std::string& json, size_t data_bytes) {
    std::string out(8, '\0');
    const uint64_t size = json.size();
    std::memcpy(out.data(), &size, 8);
    return out + json + std::string(data_bytes, '\1');
  }

  // The message of opening a file with this header, "" if it opens.
  std::string OpenError(const std::string& json, size_t data_bytes) const {
    const auto reader =
        SafetensorsReader::Open(Write("hostile", Raw(json, data_bytes)));
    if (reader.ok()) return "";
    EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(reader.status().message()),
                HasSubstr(Path("hostile")));
    return std::string(reader.status().message());
  }

  std::string dir_;
};

TEST_F(SafetensorsTest, Write_TwoDtypes_ReadsBackInReferenceOrder) {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> codes = {1, 2, 3};
  const auto digest = WriteSafetensors(
      Path("m"),
      {{"codes", TensorDtype::kU8, {3}, codes},
       {"z", TensorDtype::kF32, {2, 3}, Bytes(a)},
       {"b", TensorDtype::kF32, {}, Bytes(std::span(a).first(1))},
       {"empty", TensorDtype::kF32, {0, 7}, {}}},
      {{"format", "pt"}});
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, *Sha256OfFile(Path("m")));

  const std::string file = *ReadFile(Path("m"));
  uint64_t header = 0;
  std::memcpy(&header, file.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  EXPECT_THAT(file.substr(8, header),
              ::testing::StartsWith(
                  R"({"__metadata__":{"format":"pt"},)"
                  R"("b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                  R"("empty":{"dtype":"F32","shape":[0,7],)"
                  R"("data_offsets":[4,4]},)"
                  R"("z":{"dtype":"F32","shape":[2,3],)"
                  R"("data_offsets":[4,28]},"codes":)"));

  const auto reader = SafetensorsReader::Open(Path("m"));
  ASSERT_TRUE(reader.ok()) << reader.status();
  ASSERT_EQ((*reader)->tensors().size(), 4u);
  EXPECT_EQ((*reader)->tensors()[0].name, "b");
  EXPECT_EQ((*reader)->metadata().at("format"), "pt");
  std::vector<float> back(6);
  ASSERT_TRUE((*reader)->ReadFloat32("z", back).ok());
  EXPECT_EQ(back, a);
  EXPECT_THAT(*(*reader)->Data("codes"), ElementsAre(1, 2, 3));
  EXPECT_EQ((*reader)->Find("nothing"), nullptr);
  EXPECT_TRUE(absl::IsNotFound((*reader)->Data("nothing").status()));
  EXPECT_FALSE((*reader)->ReadFloat32("codes", std::span(back).first(3)).ok());
  EXPECT_FALSE((*reader)->ReadFloat32("z", std::span(back).first(3)).ok());
}

TEST_F(SafetensorsTest, Write_WrongSizeOrRepeatedName_Refuses) {
  const std::vector<float> a = {1, 2};
  EXPECT_FALSE(
      WriteSafetensors(Path("m"), {{"a", TensorDtype::kF32, {3}, Bytes(a)}}, {})
          .ok());
  EXPECT_FALSE(WriteSafetensors(Path("m"),
                                {{"a", TensorDtype::kF32, {2}, Bytes(a)},
                                 {"a", TensorDtype::kF32, {2}, Bytes(a)}},
                                {})
                   .ok());
  EXPECT_TRUE(fs::is_empty(dir_));
}

TEST_F(SafetensorsTest, Write_NoSpace_LeavesNothing) {
  // The file size limit stands for a full disk.
  rlimit old = {};
  ::getrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 4096;
  ::setrlimit(RLIMIT_FSIZE, &small);
  const std::vector<float> values(4096);
  const auto status = WriteSafetensors(
      Path("m"), {{"a", TensorDtype::kF32, {4096}, Bytes(values)}}, {});
  ::setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_TRUE(absl::IsResourceExhausted(status.status())) << status.status();
  EXPECT_TRUE(fs::is_empty(dir_));
  EXPECT_TRUE(
      absl::IsNotFound(WriteSafetensors(Path("absent/m"), {}, {}).status()));
}

TEST_F(SafetensorsTest, Read_HalfPrecision_ConvertsExactly) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = i;
  const std::span<const uint8_t> data(
      reinterpret_cast<const uint8_t*>(halves.data()), halves.size() * 2);
  ASSERT_TRUE(WriteSafetensors(Path("m"),
                               {{"f16", TensorDtype::kF16, {65536}, data},
                                {"bf16", TensorDtype::kBF16, {65536}, data}},
                               {})
                  .ok());
  const auto reader = SafetensorsReader::Open(Path("m"));
  ASSERT_TRUE(reader.ok());
  std::vector<float> f16(65536), bf16(65536);
  ASSERT_TRUE((*reader)->ReadFloat32("f16", f16).ok());
  ASSERT_TRUE((*reader)->ReadFloat32("bf16", bf16).ok());
  for (uint32_t i = 0; i < 65536; ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(bf16[i]), i << 16);
    const int exponent = (i >> 10) & 31;
    const double fraction = i & 1023;
    const double sign = i & 0x8000 ? -1 : 1;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(f16[i]), fraction != 0);
      EXPECT_EQ(std::signbit(f16[i]), sign < 0);
      continue;
    }
    const double want = exponent == 0
                            ? std::ldexp(fraction, -24)
                            : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(f16[i], sign * want) << i;
  }
}

TEST_F(SafetensorsTest, Open_HostileHeaders_SaysWhatIsWrong) {
  const struct {
    const char* json;
    size_t data_bytes;
    const char* message;
  } cases[] = {
      {"", 0, "not JSON"},
      {"[]", 0, "an array"},
      {"{\"a\":1}", 0, "a number"},
      {"{", 0, "not JSON"},
      {"{}x", 0, "not JSON"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 4,
       "not JSON"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "dtype is missing"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "shape is missing"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "data_offsets is missing"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4,
       "incomplete"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4,
       "more than two"},
      {R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", 4,
       "'F99' is not supported (supported: BOOL"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4,
       "a negative number"},
      {R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4,
       "no integer"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4,
       "an array"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8,
       "bytes 0 to 4 belong to no tensor: there is a hole before 'a'"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("c":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12,
       "bytes 4 to 8 belong to no tensor: there is a hole between 'a' "
       "(data_offsets 0, 4) and 'c' (data_offsets 8, 12)"},
      // Not the one behind it, which is right.
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[9004,9008]},)"
       R"("c":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12, "tensor 'b' ends at 9008, past the file's 12 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,8]},)"
       R"("c":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12, "tensor 'b' of shape [1] and dtype F32 needs 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "ends before it begins"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4,
       "tensors 'a' (data_offsets 0, 4) and 'b' (data_offsets 0, 4) overlap"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12,
       "tensors 'a' (data_offsets 0, 8) and 'b' (data_offsets 4, 12) "
       "overlap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "appears twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],)"
       R"("data_offsets":[0,4]}})",
       4, "dtype appears twice"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
       "needs 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 8,
       "past the file's 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8,
       "the file has 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],)"
       R"("data_offsets":[0,0]}})",
       0, "overflows"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],)"
       R"("data_offsets":[0,4]}})",
       4, "63 bits"},
      {R"({"a":{"dtype":"F32","shape":[1],)"
       R"("data_offsets":[9223372036854775807,18446744073709551615]}})",
       4, "63 bits"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{}}})", 4,
       "an object"},
      {R"({"__metadata__":{"a":1}})", 0, "a number"},
      {R"({"__metadata__":{"a":{}}})", 0, "an object"},
      {R"({"__metadata__":"pt"})", 0, "a string"},
      {R"({"a":null})", 0, "null"},
      {"{\"\\u0007\":{\"dtype\":1}}", 0, "'\\x07'"},
      {"{\"\xff\":{}}", 0, "not JSON"},
  };
  for (const auto& hostile : cases) {
    EXPECT_THAT(OpenError(hostile.json, hostile.data_bytes),
                HasSubstr(hostile.message))
        << hostile.json;
  }
  std::string dimensions = "1";
  for (int i = 0; i < 40; ++i) dimensions += ",1";
  EXPECT_THAT(OpenError(R"({"a":{"dtype":"U8","shape":[)" + dimensions +
                            R"(],"data_offsets":[0,1]}})",
                        1),
              HasSubstr("dimensions"));
  EXPECT_THAT(OpenError(std::string(1'000'000, '['), 0), HasSubstr("array"));
  EXPECT_THAT(OpenError("{\"a\":" + std::string(1'000'000, '['), 0),
              HasSubstr("array"));
}

TEST_F(SafetensorsTest, Open_LiberalHeaders_Opens) {
  EXPECT_EQ(OpenError("{}", 0), "");
  EXPECT_EQ(OpenError("  {\"__metadata__\": null}  ", 0), "");
  // Not padded, not sorted, data in another order.
  EXPECT_EQ(OpenError(R"({"b":{"data_offsets":[4,8],"shape":[1],)"
                      R"("dtype":"F32"},"a":{"dtype":"F32","shape":[1],)"
                      R"("data_offsets":[0,4]}})",
                      8),
            "");
}

TEST_F(SafetensorsTest, Open_BadLength_SaysSo) {
  EXPECT_THAT(SafetensorsReader::Open(Write("m", "1234")).status().message(),
              HasSubstr("too few"));
  std::string huge(8, '\xff');
  EXPECT_THAT(SafetensorsReader::Open(Write("m", huge)).status().message(),
              HasSubstr("more than the format's limit"));
  std::string past = Raw("{}", 0);
  past[0] = 100;
  EXPECT_THAT(SafetensorsReader::Open(Write("m", past)).status().message(),
              HasSubstr("past the end of the file"));
  EXPECT_TRUE(
      absl::IsNotFound(SafetensorsReader::Open(Path("absent")).status()));
  EXPECT_FALSE(SafetensorsReader::Open(dir_).ok());
}

// Whatever byte of a header changes, opening neither crashes nor gives a tensor
// that lies outside the file.
TEST_F(SafetensorsTest, Open_AnyByteFlipped_StaysInsideFile) {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  ASSERT_TRUE(WriteSafetensors(Path("m"),
                               {{"a", TensorDtype::kF32, {2, 3}, Bytes(a)},
                                {"b", TensorDtype::kF32, {6}, Bytes(a)}},
                               {})
                  .ok());
  const std::string good = *ReadFile(Path("m"));
  for (size_t i = 0; i < good.size() - 48; ++i) {
    for (const int bit : {0, 2, 5, 7}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      const auto reader = SafetensorsReader::Open(Write("flipped", bad));
      if (!reader.ok()) continue;
      for (const TensorInfo& info : (*reader)->tensors()) {
        const auto data = (*reader)->Data(info.name);
        ASSERT_TRUE(data.ok()) << data.status();
        unsigned sum = 0;
        for (const uint8_t byte : *data) sum += byte;
        EXPECT_LE(info.size_bytes, 48) << sum;
      }
    }
  }
}

TEST_F(SafetensorsTest, WriteModel_SmallShards_OpensAsOneModel) {
  const std::vector<float> a = {1, 2, 3, 4};
  const std::vector<TensorToWrite> tensors = {
      {"x", TensorDtype::kF32, {4}, Bytes(a)},
      {"a", TensorDtype::kF32, {2}, Bytes(std::span(a).first(2))},
      {"big", TensorDtype::kF32, {4}, Bytes(a)}};
  const auto files =
      WriteSafetensorsModel(dir_, tensors, {{"format", "pt"}}, 24);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(*files, ElementsAre("model-00001-of-00002.safetensors",
                                  "model-00002-of-00002.safetensors",
                                  "model.safetensors.index.json"));
  const auto index = nlohmann::json::parse(*ReadFile(Path(files->back())));
  EXPECT_EQ(index["metadata"]["total_size"], 40);
  const auto reader = SafetensorsReader::OpenModel(dir_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->tensors().size(), 3u);
  std::vector<float> back(2);
  ASSERT_TRUE((*reader)->ReadFloat32("a", back).ok());
  EXPECT_THAT(back, ElementsAre(1, 2));

  fs::remove(Path("model-00002-of-00002.safetensors"));
  const auto missing = SafetensorsReader::OpenModel(dir_);
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(missing.status().message(),
              HasSubstr("model-00002-of-00002.safetensors: this shard"));
}

TEST_F(SafetensorsTest, OpenModel_BadIndex_SaysWhatIsWrong) {
  const auto error = [&](const std::string& index) {
    Write("model.safetensors.index.json", index);
    const auto reader = SafetensorsReader::OpenModel(dir_);
    return std::string(reader.status().message());
  };
  EXPECT_THAT(error("no json"), HasSubstr("weight_map"));
  EXPECT_THAT(error("{}"), HasSubstr("weight_map"));
  EXPECT_THAT(error(R"({"weight_map":{"a":3}})"), HasSubstr("'a'"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"../x"}})"),
              HasSubstr("inside the model's directory"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"/etc/passwd"}})"),
              HasSubstr("inside the model's directory"));
  Write("s", Raw("{}", 0));
  EXPECT_THAT(error(R"({"weight_map":{"a":"s"}})"),
              HasSubstr("tensor 'a' is missing"));
}

TEST_F(SafetensorsTest, OpenModel_NoModel_SaysWhatIsMissing) {
  const auto empty = SafetensorsReader::OpenModel(dir_);
  EXPECT_TRUE(absl::IsNotFound(empty.status()));
  EXPECT_THAT(empty.status().message(), HasSubstr("model.safetensors"));
  EXPECT_TRUE(
      absl::IsNotFound(SafetensorsReader::OpenModel(Path("no")).status()));
}

TEST_F(SafetensorsTest, OpenModel_RealModel_HasItsTensors) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string model = SharedData() + "/models/stories260K";
  const auto reader = SafetensorsReader::OpenModel(model);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const TensorInfo* embedding = (*reader)->Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_THAT(embedding->shape, ElementsAre(512, 64));
  EXPECT_EQ(embedding->num_elements(), 512 * 64);

  // Written again, the file is the same but for the header's metadata.
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& info : (*reader)->tensors()) {
    tensors.push_back(
        {info.name, info.dtype, info.shape, *(*reader)->Data(info.name)});
  }
  ASSERT_TRUE(WriteSafetensorsModel(dir_, tensors, (*reader)->metadata()).ok());
  const auto again = SafetensorsReader::OpenModel(dir_);
  ASSERT_TRUE(again.ok());
  for (const TensorInfo& info : (*reader)->tensors()) {
    const auto want = *(*reader)->Data(info.name);
    const auto got = *(*again)->Data(info.name);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin(), got.end()));
  }
}

}  // namespace
}  // namespace qlora
