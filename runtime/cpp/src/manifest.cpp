#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <cmt/error.hpp>
#include <utility>

#include "manifest_schema.hpp"
#include "schema.hpp"
#include "strict_json.hpp"

namespace cmt {
namespace {

using Json = nlohmann::json;

const Schema& manifest_schema() {
  static const Schema kKnown(kManifestSchema);
  return kKnown;
}

// --- what a schema cannot say, as `_problems` of bundle/manifest.py
// --------------------------------

void check_relative(const std::string& path) {
  bool good = !path.empty() && path.find_first_of(std::string("\\:\0", 3)) == std::string::npos;
  for (std::size_t begin = 0; good && begin <= path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    good = !part.empty() && part != "." && part != "..";
    begin = end + 1;
  }
  if (!good) {
    throw InputError(std::string(kManifest) + " names '" +
                     path.substr(0, std::min<std::size_t>(path.find('\0'), 200)) +
                     "', which is no path within a bundle");
  }
}

/// A number in single precision, which is how it is used.
float finite_number(const Json& value) {
  const auto number = static_cast<float>(value.get<double>());
  if (!std::isfinite(number)) damaged("a number is not finite in single precision");
  return number;
}

float positive_number(const Json& value) {
  const float number = finite_number(value);
  if (number <= 0) damaged("std and max_rel must be positive in single precision");
  return number;
}

void check_shape(const Json& input) {
  const Json& shape = input.at("shape");
  const std::size_t first = input.at("layout") == "NHWC" ? 1 : 2;
  const Json& crop = input.at("crop").at("size");
  const Json& box = input.at("resize").at("box");
  if (shape[first] != crop[0] || shape[first + 1] != crop[1]) {
    damaged("the input's shape is not that of the crop");
  }
  if (crop[0] > box[0] || crop[1] > box[1]) {
    damaged("the crop is larger than what is resized to");
  }
}

/// What is black and white in images that do not say so.
std::optional<ImageRange> image_range(const Json& input) {
  if (!input.contains("image_range")) return std::nullopt;
  const Json& range = input.at("image_range");
  const ImageRange result{range[0].get<double>(), range[1].get<double>()};
  if (!(result.low < result.high && std::isfinite(result.high - result.low))) {
    damaged("image_range does not rise, or is not finite");
  }
  return result;
}

void check_batches(const Json& artefact, std::size_t batch) {
  if (!artefact.contains("batches")) return;
  const auto batches = artefact.at("batches").get<std::vector<std::size_t>>();
  if (batches[0] > batch || batches[1] != batch || batches[2] < batch) {
    damaged("the batches of " + artefact.at("path").get<std::string>() +
            " do not rise around the input's");
  }
}

// --- the values, once they are known to be of their types and in their ranges
// ---------------------

FileEntry file_entry(const Json& value) {
  FileEntry entry{value.at("path").get<std::string>(), value.at("bytes").get<std::uint64_t>(),
                  value.at("sha256").get<std::string>()};
  check_relative(entry.path);
  return entry;
}

bool is_file_entry(const Json& value) {
  return value.is_object() && value.contains("path") && value.contains("sha256");
}

/// Of a file that is named in a place where anything may be, such as the environment.
FileEntry checked_file_entry(const Json& value) {
  const Json described{{"path", value.at("path")},
                       {"bytes", value.value("bytes", Json())},
                       {"sha256", value.at("sha256")}};
  if (manifest_schema().problem_of("file", described)) {
    damaged(value.at("path").dump().substr(0, 40) + " has a sha256 and is no file of a bundle");
  }
  return file_entry(described);
}

/// Every file of a bundle, wherever the manifest has a path and its sha256 together, each once.
std::vector<FileEntry> collect_files(const Json& root) {
  std::map<std::string, FileEntry> files;
  std::vector<const Json*> pending{&root};
  while (!pending.empty()) {
    const Json& value = *pending.back();
    pending.pop_back();
    if (is_file_entry(value)) {
      const FileEntry entry = checked_file_entry(value);
      const FileEntry& known = files.emplace(entry.path, entry).first->second;
      if (known.bytes != entry.bytes || known.sha256 != entry.sha256) {
        damaged(entry.path + " is there twice, with different contents");
      }
    }
    if (!value.is_structured()) continue;
    for (const Json& item : value) pending.push_back(&item);
  }
  std::vector<FileEntry> found;
  found.reserve(files.size());
  for (auto& [path, entry] : files) found.push_back(std::move(entry));
  return found;
}

template <typename Read>
std::array<float, 3> per_channel(const Json& value, const Read& read) {
  return {read(value[0]), read(value[1]), read(value[2])};
}

Preprocessing preprocessing(const Json& input) {
  check_shape(input);
  Preprocessing result;
  result.in_graph = input.at("dtype") == "uint8";
  const Json& resize = input.at("resize");
  const Json& crop = input.at("crop").at("size");
  result.box_height = resize.at("box")[0].get<int>();
  result.box_width = resize.at("box")[1].get<int>();
  result.longest_aspect = resize.at("longest_aspect").get<int>();
  result.interpolation =
      resize.at("filter") == "pillow-bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
  result.height = crop[0].get<int>();
  result.width = crop[1].get<int>();
  result.mean = per_channel(input.at("mean"), finite_number);
  result.std = per_channel(input.at("std"), positive_number);
  return result;
}

/// Such as `tensorrt_rtx 1.7.1 for sm86, sm89`.
std::string description_of_build(const Json& value) {
  std::string text;
  for (const auto& [name, version] : value.at("built_with").items()) {
    text += (text.empty() ? "" : ", ") + name + " " + version.get<std::string>();
  }
  std::string separator = " for ";
  for (const Json& device : value.at("built_for")) {
    text += std::exchange(separator, ", ") + device.get<std::string>();
  }
  return text;
}

/// What an entry says of an engine alone.
void read_engine(const Json& value, Artefact* result) {
  if (result->target == "tensorrt")
    result->built_with = value.at("built_with").items().begin().key();
  for (const Json& with : value.value("compatible", Json::array())) {
    result->brings_runtime = result->brings_runtime || with == "version";
  }
  if (value.contains("dla")) result->dla_core = value.at("dla").at("core").get<int>();
}

/// What a file may answer, in one arithmetic and in another.
std::vector<std::vector<FileEntry>> golden_answers(const Json& golden) {
  std::vector<std::vector<FileEntry>> answers;
  for (const char* arithmetic : {"outputs", "outputs_f32"}) {
    if (!golden.contains(arithmetic)) continue;
    answers.emplace_back();
    for (const Json& entry : golden.at(arithmetic)) answers.back().push_back(file_entry(entry));
  }
  return answers;
}

Artefact artefact(const Json& value, std::size_t outputs) {
  Artefact result;
  result.target = value.at("target").get<std::string>();
  result.precision = value.at("precision").get<std::string>();
  result.file = file_entry(value);
  result.built = description_of_build(value);
  for (const auto& [name, setting] : value.at("settings").items()) {
    result.settings[name] = setting.is_string() ? setting.get<std::string>() : setting.dump();
  }
  read_engine(value, &result);
  const Json& golden = value.at("golden");
  result.golden_answers = golden_answers(golden);
  for (const std::vector<FileEntry>& entries : result.golden_answers) {
    if (entries.size() == outputs) continue;
    damaged("golden outputs of " + result.file.path + " do not match the outputs");
  }
  result.max_rel = positive_number(golden.at("max_rel"));
  return result;
}

std::vector<Artefact> artefacts(const Json& entries, std::size_t outputs, std::size_t batch) {
  std::vector<Artefact> found;
  std::map<std::string, std::uint64_t> bytes;  // of a runtime's precision, all its files together
  const auto name = [](const Json& value) {
    return value.at("target").get<std::string>() + "/" + value.at("precision").get<std::string>();
  };
  for (const Json& value : entries) {
    check_batches(value, batch);
    bytes[name(value)] += value.at("bytes").get<std::uint64_t>();
    if (value.contains("golden")) found.push_back(artefact(value, outputs));
  }
  for (Artefact& one : found) one.total_bytes = bytes[one.name()];
  return found;
}

std::optional<AnswerFiles> answer_files(const Json& json) {
  if (!json.contains("answers")) return std::nullopt;
  const Json& answers = json.at("answers");
  return AnswerFiles{file_entry(answers.at("images")), file_entry(answers.at("classes")),
                     file_entry(answers.at("logits")),
                     answers.at("folders").get<std::map<std::string, std::size_t>>()};
}

Manifest read_manifest(const Json& json) {
  Manifest manifest;
  manifest.preprocessing = preprocessing(json.at("input"));
  manifest.image_range = image_range(json.at("input"));
  manifest.batch = json.at("input").at("shape")[0].get<std::size_t>();
  json.at("outputs").get_to(manifest.outputs);
  json.at("labels").get_to(manifest.labels);
  manifest.artefacts = artefacts(json.at("artefacts"), manifest.outputs.size(), manifest.batch);
  const Json& golden = json.at("golden");
  manifest.golden_images = file_entry(golden.at("images"));
  manifest.golden_photo = file_entry(golden.at("photo"));
  manifest.golden_pixels = file_entry(golden.at("pixels"));
  manifest.max_grey_levels = golden.at("max_grey_levels").get<int>();
  manifest.answers = answer_files(json);
  manifest.files = collect_files(json);
  return manifest;
}

void check_version(const Json& json) {
  if (!json.is_object() || !json.contains("schema")) damaged("it has no schema version");
  const Json& version = json.at("schema");
  if (version.is_number_integer() && version > kSchema) {
    throw InputError(std::string(kManifest) + " has schema " + version.dump() +
                     ", this version reads up to " + std::to_string(kSchema) +
                     ": update cmt_runtime");
  }
}

}  // namespace

Manifest parse_manifest(std::string_view text) {
  const Json json = parse_strictly(text);
  check_version(json);
  if (const auto problem = manifest_schema().problem(json)) damaged(problem->substr(0, 300));
  return read_manifest(json);
}

}  // namespace cmt
