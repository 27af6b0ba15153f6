#include "bundle.hpp"

#include <algorithm>
#include <cmath>
#include <cmt/error.hpp>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "files.hpp"

namespace cmt {
namespace {

using Json = nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kSeal = "manifest.json.sha256";

[[noreturn]] void refuse(const std::string& name, const std::string& problem) {
  throw InputError(name + " is not the file of this bundle (" + problem +
                   "): copy the bundle again");
}

[[noreturn]] void damaged(const std::string& problem) {
  throw InputError(std::string(kManifest) + " is damaged (" + problem + "): copy the bundle again");
}

/// The rules of cmt/strict_json.py, so that Python and C++ read one manifest alike.
Json parse_strictly(std::string_view text) {
  constexpr int kMaxDepth = 64;
  if (text.substr(0, 3) == "\xEF\xBB\xBF") damaged("it begins with a byte order mark");
  std::vector<std::set<std::string>> names;
  return Json::parse(text, [&](int depth, Json::parse_event_t event, const Json& value) {
    using Event = Json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxDepth) {
      damaged("it is nested too deeply");
    }
    if (event == Event::object_start) names.emplace_back();
    if (event == Event::object_end) names.pop_back();
    if (event == Event::key && !names.back().insert(value.get<std::string>()).second) {
      damaged("it has the name '" + value.get<std::string>().substr(0, 40) +
              "' twice in one object");
    }
    return true;
  });
}

constexpr std::int64_t kMostImages = 4096;  // per inference, as in manifest.schema.json

std::int64_t whole_number(const Json& value, std::int64_t low, std::int64_t high) {
  // get<int64_t> would turn 1.5 into 1, and 2^64 - 1 into -1.
  const bool representable =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()});
  if (!representable || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
    damaged(value.dump().substr(0, 40) + " is no whole number from " + std::to_string(low) +
            " to " + std::to_string(high));
  }
  return value.get<std::int64_t>();
}

float finite_number(const Json& value) {
  const auto number = static_cast<float>(value.get<double>());
  if (!value.is_number() || !std::isfinite(number)) damaged("a number is not finite");
  return number;
}

void expect(const Json& object, const char* key, const Json& value) {
  if (object.at(key) != value) {
    damaged(std::string(key) + " is " + object.at(key).dump().substr(0, 40) +
            ", this version knows " + value.dump());
  }
}

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

FileEntry file_entry(const Json& value) {
  FileEntry entry;
  entry.path = value.at("path").get<std::string>();
  entry.bytes = static_cast<std::uint64_t>(
      whole_number(value.at("bytes"), 0, std::numeric_limits<std::int64_t>::max()));
  entry.sha256 = value.at("sha256").get<std::string>();
  check_relative(entry.path);
  return entry;
}

/// Every file of a bundle: wherever the manifest has a path and its sha256 together.
void collect_files(const Json& root, std::vector<FileEntry>& files) {
  std::vector<const Json*> pending{&root};  // no recursion: nesting has no limit
  while (!pending.empty()) {
    const Json& value = *pending.back();
    pending.pop_back();
    if (value.is_object() && value.contains("path") && value.contains("sha256")) {
      files.push_back(file_entry(value));
    }
    if (!value.is_structured()) continue;
    for (const Json& item : value) pending.push_back(&item);
  }
}

std::array<float, 3> per_channel(const Json& value) {
  if (!value.is_array() || value.size() != 3) damaged("mean and std take three numbers each");
  return {finite_number(value[0]), finite_number(value[1]), finite_number(value[2])};
}

std::pair<int, int> size_of(const Json& value) {
  constexpr int kLongestSide = 16384;
  if (!value.is_array() || value.size() != 2) damaged("a size takes a height and a width");
  return {static_cast<int>(whole_number(value[0], 1, kLongestSide)),
          static_cast<int>(whole_number(value[1], 1, kLongestSide))};
}

Preprocessing preprocessing(const Json& input) {
  const bool in_graph = input.at("dtype") == "uint8";
  if (!in_graph) expect(input, "dtype", "float32");
  expect(input, "layout", in_graph ? "NHWC" : "NCHW");
  expect(input, "colour_order", "RGB");
  expect(input, "exif_orientation", "applied");
  expect(input, "range", Json::array({0.0, 1.0}));
  expect(input.at("resize"), "rule", "cover");
  const bool is_bilinear = input.at("resize").at("filter") == "pillow-bilinear";
  if (!is_bilinear) expect(input.at("resize"), "filter", "pillow-bicubic");
  expect(input.at("crop"), "position", "centre");
  Preprocessing result;
  result.interpolation = is_bilinear ? Interpolation::bilinear : Interpolation::bicubic;
  result.in_graph = in_graph;
  std::tie(result.box_height, result.box_width) = size_of(input.at("resize").at("box"));
  std::tie(result.height, result.width) = size_of(input.at("crop").at("size"));
  result.longest_aspect =
      static_cast<int>(whole_number(input.at("resize").at("longest_aspect"), 1, 1024));
  result.mean = per_channel(input.at("mean"));
  result.std = per_channel(input.at("std"));
  if (*std::min_element(result.std.begin(), result.std.end()) <= 0) damaged("std is not positive");
  if (result.height > result.box_height || result.width > result.box_width) {
    damaged("the crop is larger than what is resized to");
  }
  const Json& shape = input.at("shape");
  const std::size_t height = in_graph ? 1 : 2;
  if (!shape.is_array() || shape.size() != 4 || shape[in_graph ? 3 : 1] != 3 ||
      shape[height] != result.height || shape[height + 1] != result.width) {
    damaged("the input's shape is not that of the crop in its layout");
  }
  return result;
}

/// The JSON library would take any value for an array of one, or for an object of one.
const Json& array(const Json& object, const char* key, std::size_t fewest = 0) {
  const Json& value = object.at(key);
  if (!value.is_array() || value.size() < fewest) {
    damaged(std::string(key) + " is no list of at least " + std::to_string(fewest));
  }
  return value;
}

const Json& object_of(const Json& object, const char* key) {
  if (!object.at(key).is_object()) damaged(std::string(key) + " is no object");
  return object.at(key);
}

/// Such as `tensorrt_rtx 1.7.1 for sm86, sm89`.
std::string description_of_build(const Json& value) {
  std::string text;
  for (const auto& [name, version] : object_of(value, "built_with").items()) {
    text += (text.empty() ? "" : ", ") + name + " " + version.get<std::string>();
  }
  std::string separator = " for ";
  for (const Json& device : array(value, "built_for")) {
    text += std::exchange(separator, ", ") + device.get<std::string>();
  }
  return text;
}

// As in manifest.schema.json: other properties could make OpenVINO write files.
const std::set<std::string> kSettings{"PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_PRECISION_HINT",
                                      "INFERENCE_NUM_THREADS"};

/// What an entry says of an engine alone.
void read_engine(const Json& value, std::size_t batch, Artefact* result) {
  if (value.contains("batches")) {
    const Json& batches = array(value, "batches");
    if (batches.size() != 3) damaged("the batches");
    const auto least = whole_number(batches[0], 1, kMostImages);
    const auto usual = whole_number(batches[1], least, kMostImages);
    whole_number(batches[2], usual, kMostImages);
    if (static_cast<std::size_t>(usual) != batch) damaged("the batches");
  }
  if (value.contains("compatible")) {
    for (const Json& with : array(value, "compatible")) {
      if (with != "version" && with != "hardware") damaged("what an engine is compatible with");
      result->brings_runtime = result->brings_runtime || with == "version";
    }
  }
  if (value.contains("dla")) {
    result->dla_core = static_cast<int>(whole_number(object_of(value, "dla").at("core"), 0, 1));
  }
}

Artefact artefact(const Json& value, std::size_t outputs, std::size_t batch) {
  Artefact result;
  result.target = value.at("target").get<std::string>();
  result.precision = value.at("precision").get<std::string>();
  result.file = file_entry(value);
  result.built = description_of_build(value);
  for (const auto& [name, setting] : object_of(value, "settings").items()) {
    if (kSettings.count(name) == 0) damaged("the setting " + name + " is not allowed");
    if (setting.is_structured() || setting.is_null()) damaged("the setting " + name);
    result.settings[name] = setting.is_string() ? setting.get<std::string>() : setting.dump();
  }
  read_engine(value, batch, &result);
  const Json& golden = value.at("golden");
  for (const Json& entry : array(golden, "outputs"))
    result.golden_outputs.push_back(file_entry(entry));
  if (result.golden_outputs.size() != outputs) damaged("golden outputs do not match the outputs");
  result.max_rel = finite_number(golden.at("max_rel"));
  if (result.max_rel <= 0) damaged("max_rel is not positive");
  return result;
}

Manifest read_manifest(const Json& json) {
  if (!json.at("schema").is_number_integer()) damaged("its schema is no number");
  if (json.at("schema") > kSchema) {
    throw InputError(std::string(kManifest) + " has schema " + json.at("schema").dump() +
                     ", this version reads up to " + std::to_string(kSchema) +
                     ": update cmt_runtime");
  }
  whole_number(json.at("schema"), 1, kSchema);
  Manifest manifest;
  manifest.preprocessing = preprocessing(json.at("input"));
  manifest.batch =
      static_cast<std::size_t>(whole_number(json.at("input").at("shape")[0], 1, kMostImages));
  array(json, "outputs", 1).get_to(manifest.outputs);
  for (const std::string& name : manifest.outputs) {
    if (name.empty()) damaged("an output has no name");
  }
  array(json, "labels").get_to(manifest.labels);
  const Json& artefacts = array(json, "artefacts", 1);
  for (const Json& value : artefacts) {
    if (!value.is_object()) damaged("an artefact is no object");
    if (!value.contains("golden")) continue;
    manifest.artefacts.push_back(artefact(value, manifest.outputs.size(), manifest.batch));
    Artefact& added = manifest.artefacts.back();
    for (const Json& other : artefacts) {
      if (other.at("target") == added.target && other.at("precision") == added.precision) {
        added.total_bytes += file_entry(other).bytes;
      }
    }
  }
  const Json& golden = json.at("golden");
  manifest.golden_images = file_entry(golden.at("images"));
  manifest.golden_photo = file_entry(golden.at("photo"));
  manifest.golden_pixels = file_entry(golden.at("pixels"));
  manifest.max_grey_levels = static_cast<int>(whole_number(golden.at("max_grey_levels"), 0, 255));
  collect_files(json, manifest.files);
  return manifest;
}

/// A file's own place, if that is in the bundle, links followed.
std::filesystem::path inside(const std::filesystem::path& folder, const std::string& name) {
  std::error_code error;
  const auto root = std::filesystem::canonical(folder, error);
  auto path = std::filesystem::canonical(folder / name, error);
  if (error) refuse(name, error.message());
  if (std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first != root.end()) {
    throw InputError("'" + name + "' leads out of the bundle: copy the bundle again, links " +
                     "followed");
  }
  if (!std::filesystem::is_regular_file(path)) refuse(name, "it is no file");  // a pipe never ends
  return path;
}

void check_file(const std::filesystem::path& folder, const FileEntry& entry) {
  const auto path = inside(folder, entry.path);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) refuse(entry.path, error.message());
  if (size != entry.bytes) {
    refuse(entry.path, std::to_string(size) + " bytes in place of " + std::to_string(entry.bytes));
  }
  if (sha256_file(path) != entry.sha256) refuse(entry.path, "its sha256 differs");
}

}  // namespace

Manifest parse_manifest(std::string_view text) {
  try {
    return read_manifest(parse_strictly(text));
  } catch (const Json::exception& error) {
    damaged(std::string(error.what()).substr(0, 200));
  }
}

Bundle::Bundle(std::filesystem::path folder) : folder_(std::move(folder)) {
  if (!std::filesystem::is_regular_file(folder_ / kManifest)) {
    throw InputError(folder_.string() + " is no bundle: it has no " + kManifest);
  }
  const std::string text = read_file(inside(folder_, kManifest));
  manifest_ = parse_manifest(text);
  if (read_file(inside(folder_, kSeal)) != sha256(text) + "  " + kManifest + "\n") {
    refuse(kManifest, std::string("its sha256 is not that of ") + kSeal);
  }
  for (const FileEntry& entry : manifest_.files) check_file(folder_, entry);
}

std::filesystem::path Bundle::path(const FileEntry& entry) const { return folder_ / entry.path; }

}  // namespace cmt
