#include <pthread.h>
#include <sys/resource.h>

#include <latch>

#include "common/base/files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/shared_data.h"
#include "worker/text/text.h"

namespace qlora::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

// 2024-07-26 00:00 UTC.
constexpr int64_t kNow = 1721952000;

Json ReadJson(const std::string& path) {
  absl::StatusOr<std::string> content = ReadFile(path);
  EXPECT_TRUE(content.ok()) << content.status().message();
  return Json::parse(content.value_or("{}"));
}

struct Outcome {
  std::string error;
  std::string text;
  std::vector<std::pair<size_t, size_t>> spans;
  bool has_mask = false;
  std::string mask_error;
};

// Through the C ABI itself: it lets a test set the time.
Outcome Render(const std::string& source, const Json& input,
               int mask = QLORA_MASK_ASSISTANT,
               const std::string& config = "") {
  Outcome out;
  QloraChatTemplate* handle = nullptr;
  QloraString error = {};
  QloraRendered raw = {};
  const std::string text = input.dump();
  if (qlora_chat_template_compile(source.data(), source.size(), config.data(),
                                  config.size(), &handle, &error) != 0 ||
      qlora_chat_template_render(handle, text.data(), text.size(), kNow, mask,
                                 &raw, &error) != 0) {
    out.error.assign(error.data, error.size);
    qlora_text_free_string(&error);
  } else {
    out.text.assign(raw.rendered.data, raw.rendered.size);
    out.has_mask = raw.has_mask != 0;
    out.mask_error.assign(raw.mask_error.data, raw.mask_error.size);
    for (size_t i = 0; i < raw.num_spans; ++i) {
      out.spans.emplace_back(raw.spans[i].begin, raw.spans[i].end);
    }
    qlora_rendered_free(&raw);
  }
  qlora_chat_template_free(handle);
  return out;
}

std::vector<std::string> SpanTexts(const Outcome& outcome) {
  std::vector<std::string> out;
  for (const auto& [begin, end] : outcome.spans) {
    out.push_back(outcome.text.substr(begin, end - begin));
  }
  return out;
}

// Byte of the n-th code point.
size_t ByteAt(const std::string& text, size_t n) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    const bool begins = (static_cast<uint8_t>(text[at]) & 0xc0) != 0x80;
    if (begins && n-- == 0) break;
  }
  return at;
}

Json Chat(std::initializer_list<std::pair<const char*, const char*>> turns) {
  Json messages = Json::array();
  for (const auto& [role, content] : turns) {
    messages.push_back({{"role", role}, {"content", content}});
  }
  return {{"messages", messages}};
}

const char kChatMl[] =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

TEST(ChatTemplate, RealTemplates_AllCases_GiveWhatJinjaGives) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string root = SharedData() + "/chat_templates/";
  const Json cases = ReadJson(root + "cases.json");
  const Json expected = ReadJson(root + "expected.json");
  EXPECT_EQ(expected.size(), 34);
  for (const auto& [name, by_case] : expected.items()) {
    const auto source = ReadFile(root + name);
    ASSERT_TRUE(source.ok());
    for (const Json& c : cases["cases"]) {
      SCOPED_TRACE(name + " " + c["name"].get<std::string>());
      Json input = cases["variables"];
      input.update(c["input"]);
      const Json& want = by_case[c["name"].get<std::string>()];
      const Outcome got = Render(*source, input);
      if (want.contains("raises")) {
        EXPECT_THAT(got.error, HasSubstr(want["raises"].get<std::string>()));
        EXPECT_THAT(got.error, HasSubstr("refuses the conversation"));
      } else if (want.contains("fails")) {
        EXPECT_THAT(got.error, HasSubstr("failed"));
      } else {
        EXPECT_EQ(got.error, "");
        EXPECT_EQ(got.text, want["text"].get<std::string>());
        if (!want.contains("assistant_ranges")) continue;
        ASSERT_EQ(got.spans.size(), want["assistant_ranges"].size());
        for (size_t i = 0; i < got.spans.size(); ++i) {
          const Json& range = want["assistant_ranges"][i];
          EXPECT_EQ(got.spans[i].first, ByteAt(got.text, range[0]));
          EXPECT_EQ(got.spans[i].second, ByteAt(got.text, range[1]));
        }
      }
    }
  }
}

// A mask is either the assistant's words or refused with a reason.
TEST(ChatTemplate, RealTemplates_AllCases_MaskHoldsEachAnswerOrSaysWhyNot) {
  SKIP_WITHOUT_SHARED_DATA();
  const std::string root = SharedData() + "/chat_templates/";
  const Json cases = ReadJson(root + "cases.json");
  int masked = 0;
  int refused = 0;
  const Json expected = ReadJson(root + "expected.json");
  for (const auto& [name, by_case] : expected.items()) {
    const auto source = ReadFile(root + name);
    ASSERT_TRUE(source.ok());
    for (const Json& c : cases["cases"]) {
      SCOPED_TRACE(name + " " + c["name"].get<std::string>());
      Json input = cases["variables"];
      input.update(c["input"]);
      const Outcome got = Render(*source, input);
      if (!got.error.empty()) continue;
      ++(got.has_mask ? masked : refused);
      EXPECT_EQ(got.has_mask, got.mask_error.empty());
      if (!got.has_mask) continue;
      size_t i = 0;
      for (const Json& m : input["messages"]) {
        if (m["role"] != "assistant") {
          const std::string other = m["content"];
          if (other.size() < 5) continue;
          EXPECT_THAT(SpanTexts(got), ::testing::Each(Not(HasSubstr(other))));
          continue;
        }
        ASSERT_LT(i, got.spans.size());
        const auto [begin, end] = got.spans[i++];
        const std::string content = m["content"];
        const size_t first = content.find_first_not_of(" \n");
        if (first == std::string::npos) continue;
        const size_t last = content.find_last_not_of(" \n");
        EXPECT_THAT(got.text.substr(begin, end - begin),
                    HasSubstr(content.substr(first, last - first + 1)));
      }
      EXPECT_EQ(i, got.spans.size());
    }
  }
  EXPECT_GT(masked, 250);
  RecordProperty("masked", masked);
  RecordProperty("refused", refused);
}

// Templates that end a conversation otherwise than a turn, or render earlier
// turns otherwise.
TEST(ChatTemplate, RealTemplatesWithoutPrefixes_EachTurnIsFoundExactly) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto spans = [](const std::string& name, const Json& messages) {
    const auto source = ReadFile(SharedData() + "/chat_templates/" + name);
    EXPECT_TRUE(source.ok()) << source.status();
    Json input = Chat({});
    input["messages"] = messages;
    input["bos_token"] = "<s>";
    input["eos_token"] = "<|endoftext|>";
    const Outcome got = Render(source.value_or(""), input);
    EXPECT_EQ(got.error + got.mask_error, "") << name;
    return SpanTexts(got);
  };
  const Json turns = Chat({{"user", "2+2?"},
                           {"assistant", "four"},
                           {"user", "times 3?"},
                           {"assistant", "twelve"}})["messages"];
  EXPECT_THAT(spans("more/Qwen3.jinja", turns),
              ElementsAre("four<|im_end|>\n",
                          "<think>\n\n</think>\n\ntwelve<|im_end|>\n"));
  EXPECT_THAT(
      spans("axolotl/qwen3.jinja", turns),
      ElementsAre("four<|im_end|>\n", "</think>\n\ntwelve<|im_end|>\n"));
  EXPECT_THAT(spans("llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja", turns),
              ElementsAre("four<|end|>\n", "twelve<|end|>\n<|endoftext|>"));
  EXPECT_THAT(spans("axolotl/metharme.jinja", turns),
              ElementsAre("four", "twelve<|endoftext|>"));
  EXPECT_THAT(
      spans("llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", turns),
      ElementsAre("four<｜end▁of▁sentence｜>", "twelve<｜end▁of▁sentence｜>"));
  const Json reasoned = Chat(
      {{"user", "2+2?"},
       {"assistant", "<think>\nadd them\n</think>\n\nfour"},
       {"user", "times 3?"},
       {"assistant", "<think>\nmultiply\n</think>\n\ntwelve"}})["messages"];
  EXPECT_THAT(spans("more/Qwen3.jinja", reasoned),
              ElementsAre("four<|im_end|>\n",
                          "<think>\nmultiply\n</think>\n\ntwelve<|im_end|>\n"));
  EXPECT_THAT(spans("axolotl/qwen3.jinja", reasoned),
              ElementsAre("four<|im_end|>\n",
                          "multiply\n</think>\n\ntwelve<|im_end|>\n"));
}

TEST(ChatTemplate, EndThatIsOnlyAlikeAtFirst_IsRefused) {
  // "<|end|>" in the middle, "<|ended|>" at last: where does the turn end?
  const std::string source =
      "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
      "{{ '<|ended|>' if loop.last else '<|end|>' }}{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|>{% endif %}";
  const Outcome got =
      Render(source, Chat({{"user", "a"}, {"assistant", "b"}, {"user", "c"}}));
  EXPECT_EQ(got.error, "");
  EXPECT_FALSE(got.has_mask);
  EXPECT_TRUE(got.spans.empty());
  EXPECT_THAT(got.mask_error, HasSubstr("assistant message 1 is rendered "
                                        "otherwise when more messages follow"));
  EXPECT_THAT(got.mask_error, HasSubstr("data.loss_on"));
}

TEST(ChatTemplate, MarksInAMessage_AreNotTakenForMarks) {
  const std::string source =
      "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}"
      "{% endif %}";
  Json input = Chat({{"user", "a"}, {"assistant", "b"}, {"user", "c"}});
  input["eos_token"] = "</s>";
  EXPECT_THAT(SpanTexts(Render(source, input)), ElementsAre("b"));
  input["messages"][1]["content"] = "b\ufdd3<|user|>";
  EXPECT_FALSE(Render(source, input).has_mask);
}

TEST(ChatTemplate, NoGenerationTags_MaskIsTheDifferenceOfPrefixes) {
  const Json input = Chat({{"user", "a"},
                           {"assistant", "one"},
                           {"user", "b"},
                           {"assistant", "two"}});
  EXPECT_THAT(SpanTexts(Render(kChatMl, input)),
              ::testing::ElementsAre("one<|im_end|>\n", "two<|im_end|>\n"));
  EXPECT_THAT(SpanTexts(Render(kChatMl, input, QLORA_MASK_LAST)),
              ::testing::ElementsAre("two<|im_end|>\n"));
  const Outcome none = Render(kChatMl, input, QLORA_MASK_NONE);
  EXPECT_FALSE(none.has_mask);
  EXPECT_EQ(none.mask_error, "");
}

TEST(ChatTemplate, NoAssistantTurn_HasAMaskOfNothing) {
  const Outcome got = Render(kChatMl, Chat({{"user", "a"}}));
  EXPECT_TRUE(got.has_mask);
  EXPECT_TRUE(got.spans.empty());
}

TEST(ChatTemplate, PrefixesDiffer_MarksTellTheTurn) {
  const std::string last_differs =
      "{% for m in messages %}[{{ m.role }}]{% if loop.last %}!{% endif %}"
      "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]"
      "{% endif %}";
  const Json input = Chat({{"user", "a"}, {"assistant", "b"}});
  const Outcome got = Render(last_differs, input);
  EXPECT_EQ(got.text, "[user]a[assistant]!b");
  EXPECT_THAT(SpanTexts(got), ElementsAre("!b"));
}

TEST(ChatTemplate, GenerationTagsWithWhitespaceControl_TrimLikeBlocks) {
  const std::string source =
      "{% for m in messages %}\n"
      "  {%- if m.role == 'assistant' %}\n"
      "A:{% generation %}\n"
      "{{ m.content }};{%- endgeneration -%}  \n"
      "  {%- else %}\n"
      "U:{{ m.content }}|\n"
      "  {%- endif %}\n"
      "{% endfor %}\n"
      "{# {% generation %} in a comment {% endgeneration %} #}";
  const Outcome got =
      Render(source, Chat({{"user", "x"}, {"assistant", "é1"}, {"user", "y"}}));
  EXPECT_EQ(got.error, "");
  EXPECT_EQ(got.text, "U:x|A:é1;U:y|");
  EXPECT_THAT(SpanTexts(got), ::testing::ElementsAre("é1;"));
}

TEST(ChatTemplate, GenerationTagsThatMarkNothing_AreNotASilentZeroMask) {
  const std::string source =
      "{% for m in messages %}{{ m.content }}{% endfor %}"
      "{% if false %}{% generation %}{% endgeneration %}{% endif %}";
  const Outcome got = Render(source, Chat({{"user", "x"}, {"assistant", "y"}}));
  EXPECT_FALSE(got.has_mask);
  EXPECT_THAT(got.mask_error, HasSubstr("mark nothing"));
}

TEST(ChatTemplate, SentinelsInAMessage_AreRefused) {
  const std::string source =
      "{% for m in messages %}{% generation %}{{ m.content }}"
      "{% endgeneration %}{% endfor %}";
  const Outcome got = Render(source, Chat({{"assistant", "a\ufdd1b"}}));
  EXPECT_THAT(got.error, HasSubstr("U+FDD0"));
}

TEST(ChatTemplate, SpecialTokens_ComeFromTokenizerConfig) {
  const std::string source =
      "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
      "{{ pad_token is defined }}{{ additional_special_tokens[1] }}";
  const std::string config =
      R"({"bos_token": {"__type": "AddedToken", "content": "<s>"},
          "eos_token": "</s>", "pad_token": null,
          "additional_special_tokens": ["<a>", {"content": "<b>"}]})";
  const Outcome got =
      Render(source, Chat({{"user", "x"}}), QLORA_MASK_NONE, config);
  EXPECT_EQ(got.error, "");
  EXPECT_EQ(got.text, "<s>x</s>False<b>");
}

TEST(ChatTemplate, Values_ArePrintedAndDumpedAsPythonDoes) {
  const Json input = {{"messages", Json::array()},
                      {"v",
                       {{"t", true},
                        {"n", nullptr},
                        {"f", 1.5},
                        {"e", 1e-5},
                        {"b", 1e16},
                        {"s", "it's \"q\" <&> é\n"},
                        {"l", {1, "a"}}}}};
  EXPECT_EQ(Render("{{ v }}", input).text,
            "{'t': True, 'n': None, 'f': 1.5, 'e': 1e-05, 'b': 1e+16, "
            "'s': 'it\\'s \"q\" <&> é\\n', 'l': [1, 'a']}");
  EXPECT_EQ(Render("{{ v | tojson }}", input).text,
            R"({"t": true, "n": null, "f": 1.5, "e": 1e-05, "b": 1e+16, )"
            R"("s": "it's \"q\" <&> é\n", "l": [1, "a"]})");
  EXPECT_EQ(
      Render("{{ {'a': [1, {}], 'b': []} | tojson(indent=2) }}", input).text,
      "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
  EXPECT_EQ(Render("{{ 'é😀' | tojson(ensure_ascii=true) }}", input).text,
            R"("\u00e9\ud83d\ude00")");
  EXPECT_EQ(
      Render("{{ strftime_now('%d %b %Y %A %-d %j %H:%M') }}", input).text,
      "26 Jul 2024 Friday 26 208 00:00");
}

TEST(ChatTemplate, MethodsOfDicts_WinOverKeysOfTheSameName) {
  const Json input = {{"messages", Json::array()},
                      {"spec", {{"type", "array"}, {"items", {{"x", 1}}}}}};
  EXPECT_EQ(
      Render("{% for k, v in spec.items() %}{{ k }};{% endfor %}", input).text,
      "type;items;");
}

TEST(ChatTemplate, HostileTemplates_AreStopped) {
  const Json input = {{"messages", Json::array()}};
  const char* const endless =
      "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a + b "
      "%}{% endfor %}{% endfor %}";
  EXPECT_THAT(Render(endless, input).error, HasSubstr("fuel"));
  EXPECT_NE(
      Render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", input).error,
      "");
  EXPECT_NE(Render("{{ 'x' * 100000000000 }}", input).error, "");
  EXPECT_THAT(
      Render("{% set x = 'y' * 1000000 %}{% for i in range(200) %}{{ x }}"
             "{% endfor %}",
             input)
          .error,
      HasSubstr("64 MiB"));
  EXPECT_NE(Render("{% include '/etc/passwd' %}", input).error, "");
  EXPECT_NE(Render("{{" + std::string(100000, '('), input).error, "");
}

TEST(ChatTemplate, TemplatesThatGrowValues_AreStoppedAndStayStopped) {
  const Json input = {{"messages", Json::array()}};
  const std::string grows[] = {
      "x = x ~ x", "x = x + x", "x = [x, x, x ~ 'y'] | join",
      "x = x | replace('y', x)", "x = (x | string).replace('y', x)"};
  for (const std::string& grow : grows) {
    const std::string source =
        "{% set ns = namespace(x='yy') %}{% for i in range(60) %}{% set x = "
        "ns.x %}{% set " +
        grow + " %}{% set ns.x = x %}{% endfor %}";
    EXPECT_THAT(Render(source, input).error, HasSubstr("MiB of memory"))
        << grow;
  }

  const auto once = ChatTemplate::Compile(
      "{% set ns = namespace(x='y') %}{% for i in range(n) %}{% set ns.x = "
      "ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
      "");
  ASSERT_TRUE(once.ok());
  const auto render = [&](int n) {
    Json numbered = input;
    numbered["n"] = n;
    return (*once)->Render(numbered.dump(), Mask::kNone, absl::UnixEpoch());
  };
  EXPECT_EQ(render(2)->text, "yyyy");
  EXPECT_THAT(render(60).status().message(), HasSubstr("256 MiB"));
  EXPECT_TRUE(absl::IsFailedPrecondition(render(2).status()));
  EXPECT_THAT(render(2).status().message(), HasSubstr("stopped at another"));
}

// Until it goes, no further thread gets a stack of half a gigabyte.
class NoStacks {
 public:
  NoStacks() {
    // Pages that are mapped; the stack takes 131072 more.
    const auto pages = std::stoull(*ReadFile("/proc/self/statm"));
    ::getrlimit(RLIMIT_AS, &old_);
    rlimit small = old_;
    small.rlim_cur = (pages + 65536) * 4096;
    ::setrlimit(RLIMIT_AS, &small);
    // The C library keeps stacks of threads that have ended.
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstacksize(&attributes, 512 << 20);
    const auto wait = [](void* end) -> void* {
      static_cast<std::latch*>(end)->wait();
      return nullptr;
    };
    pthread_t thread;
    while (::pthread_create(&thread, &attributes, wait, &end_) == 0) {
      threads_.push_back(thread);
    }
    ::pthread_attr_destroy(&attributes);
  }
  ~NoStacks() {
    end_.count_down();
    for (const pthread_t thread : threads_) ::pthread_join(thread, nullptr);
    ::setrlimit(RLIMIT_AS, &old_);
  }

 private:
  rlimit old_;
  std::latch end_{1};
  std::vector<pthread_t> threads_;
};

// The template is not to blame.
TEST(ChatTemplate, NoThread_IsUnavailableOnlyAsLongAsThereIsNone) {
  const std::string input = Chat({{"user", "a"}}).dump();
  const auto compiled = ChatTemplate::Compile("{{ messages[0].content }}", "");
  ASSERT_TRUE(compiled.ok());
  const auto render = [&] {
    return (*compiled)->Render(input, Mask::kNone, absl::UnixEpoch());
  };
  EXPECT_EQ(render()->text, "a");
  {
    const NoStacks no_stacks;
    const absl::Status status = render().status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr("gives no thread of 512 MiB"));
    EXPECT_THAT(status.message(), HasSubstr("ulimit -u"));
    EXPECT_TRUE(absl::IsUnavailable(ChatTemplate::Compile("a", "").status()));
  }
  EXPECT_EQ(render()->text, "a");
}

TEST(ChatTemplate, DeepValues_DoNotOverflowTheStack) {
  const Json input = {{"messages", Json::array()}};
  // As deep as the steps of a rendering allow.
  const std::string nest =
      "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% for j in "
      "range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
  EXPECT_EQ(Render(nest, input).error, "");
  EXPECT_EQ(Render(nest + "{{ ns.x }}", input).text.size(), 600002);
  EXPECT_EQ(Render(nest + "{{ ns.x | tojson }}", input).text.size(), 600002);
}

TEST(ChatTemplate, ValuesThatHoldThemselves_AreStopped) {
  const Json input = {{"messages", Json::array()}};
  const std::string cycle =
      "{% set ns = namespace() %}{% set ns.x = [ns] %}{% set m = namespace() %}"
      "{% set m.x = [m] %}";
  // Each leaves behind a stack of half a gigabyte.
  for (const char* use : {"ns.x | string", "ns.x ~ ''", "ns == m"}) {
    EXPECT_THAT(Render(cycle + "{{ " + use + " }}", input).error,
                HasSubstr("nested too deep or hold themselves"))
        << use;
  }
}

// The compiler recurses once for each of these.
TEST(ChatTemplate, LongExpressions_DoNotOverflowTheStack) {
  const Json input = {{"messages", Json::array()}};
  const auto repeat = [](int n, const char* part) {
    std::string text;
    for (int i = 0; i < n; ++i) text += part;
    return text;
  };
  EXPECT_EQ(Render("{{ 1" + repeat(130000, "+1") + " }}", input).text,
            "130001");
  EXPECT_EQ(Render("{{ " + repeat(262000, "-") + "1 }}", input).text, "1");
  for (const char* part : {".a", "()", "[0]"}) {
    EXPECT_THAT(Render("{{ a" + repeat(80000, part) + " }}", input).error,
                HasSubstr("the chat template failed"));
  }
  EXPECT_EQ(Render("{% if a %}" + repeat(18000, "{% elif a %}") + "{% endif %}",
                   input)
                .text,
            "");
  EXPECT_THAT(Render("{{ 1" + repeat(200000, "+1") + " }}", input).error,
              HasSubstr("has 400007 bytes; at most 262144 are read"));
}

TEST(CInterface, NullPointers_AreErrors) {
  QloraString error = {};
  QloraTokenizer* tokenizer = nullptr;
  EXPECT_EQ(qlora_tokenizer_open(nullptr, 5, &tokenizer, &error), QLORA_ERROR);
  EXPECT_THAT(std::string(error.data, error.size), HasSubstr("null pointer"));
  qlora_text_free_string(&error);
  QloraEncoding encoding = {};
  EXPECT_EQ(qlora_tokenizer_encode(nullptr, "a", 1, 0, &encoding, &error),
            QLORA_ERROR);
  EXPECT_THAT(std::string(error.data, error.size), HasSubstr("handle is null"));
  qlora_text_free_string(&error);
  EXPECT_EQ(qlora_tokenizer_vocab_size(nullptr), 0);
  EXPECT_EQ(qlora_tokenizer_token_to_id(nullptr, "a", 1), -1);
  QloraRendered rendered = {};
  EXPECT_EQ(qlora_chat_template_render(nullptr, "{}", 2, 0, QLORA_MASK_NONE,
                                       &rendered, &error),
            QLORA_ERROR);
  qlora_text_free_string(&error);
  qlora_tokenizer_free(nullptr);
  qlora_chat_template_free(nullptr);
  qlora_encoding_free(nullptr);
  qlora_rendered_free(nullptr);
  qlora_text_free_string(nullptr);
}

TEST(ChatTemplate, BadInput_IsRefusedWithTheReason) {
  EXPECT_THAT(Render("{% for %}", Chat({})).error, HasSubstr("Jinja"));
  EXPECT_THAT(Render("{{ x }}", Json::array()).error, HasSubstr("object"));
  EXPECT_THAT(Render("{{ x }}", Json::object()).error, HasSubstr("messages"));
  EXPECT_THAT(Render("{{ a.b.c }}", Chat({})).error, HasSubstr("failed"));
  EXPECT_THAT(Render("x", Chat({}), QLORA_MASK_NONE, "[").error,
              HasSubstr("tokenizer_config.json"));
}

TEST(LoadModelText, RealModels_TemplateAndSpecialTokensAreFound) {
  SKIP_WITHOUT_SHARED_DATA();
  const auto qwen = LoadModelText(SharedData() + "/tokenizers/qwen2", "");
  ASSERT_TRUE(qwen.ok()) << qwen.status();
  ASSERT_NE(qwen->chat_template, nullptr);
  EXPECT_EQ(qwen->eos_id, qwen->tokenizer->TokenToId("<|im_end|>"));
  EXPECT_FALSE(qwen->bos_id.has_value());
  const auto rendered = qwen->chat_template->Render(
      Chat({{"user", "hi"}, {"assistant", "yes"}}).dump(), Mask::kAssistant,
      absl::FromUnixSeconds(kNow));
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  ASSERT_EQ(rendered->spans.size(), 1) << rendered->mask_error;

  const auto llama = LoadModelText(SharedData() + "/tokenizers/llama2", "");
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_EQ(llama->bos_id, 1);
  EXPECT_EQ(llama->eos_id, 2);
  EXPECT_EQ(llama->chat_template, nullptr);

  const auto own = LoadModelText(SharedData() + "/tokenizers/llama2", kChatMl);
  ASSERT_TRUE(own.ok());
  EXPECT_NE(own->chat_template, nullptr);
  const auto bad = LoadModelText(SharedData() + "/tokenizers/llama2", "{% x");
  EXPECT_TRUE(absl::IsInvalidArgument(bad.status()));
}

}  // namespace
}  // namespace qlora::text
