#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "preprocessing.hpp"

namespace cmt {

/// Highest manifest schema that this version reads.
constexpr int kSchema = 1;

struct FileEntry {
  std::string path;  ///< within the bundle, forward slashes
  std::uint64_t bytes = 0;
  std::string sha256;
};

/// A file that a runtime loads, with what it answered when the bundle was made.
struct Artefact {
  std::string target;
  std::string precision;
  FileEntry file;
  std::uint64_t total_bytes = 0;  ///< with the files beside it, such as OpenVINO's .bin
  std::string built_with;         ///< an engine's library, such as tensorrt_rtx
  std::string built;              ///< with what and for what, to be shown
  std::map<std::string, std::string> settings;
  std::optional<int> dla_core;  ///< that parts of an engine run on
  bool brings_runtime = false;  ///< a version-compatible engine
  /// What it may answer, an array for each output: in the arithmetic of its settings first, then,
  /// where the bundle has that, in float32.
  std::vector<std::vector<FileEntry>> golden_answers;
  double max_rel = 0;  ///< largest difference over largest expected value

  std::string name() const { return target + "/" + precision; }
};

/// Torch's answers to the images of the export, as files; see `Answers`.
struct AnswerFiles {
  FileEntry images;
  FileEntry classes;
  FileEntry logits;
  std::map<std::string, std::size_t> folders;  ///< name of a validation folder: its class
};

/// manifest.json; see bundle/schema/manifest.schema.json.
struct Manifest {
  std::size_t batch = 0;
  Preprocessing preprocessing;
  std::optional<ImageRange> image_range;  ///< black and white of images that do not state them
  std::vector<std::string> outputs;
  std::vector<std::string> labels;
  std::vector<Artefact> artefacts;
  FileEntry golden_images;
  FileEntry golden_photo;
  FileEntry golden_pixels;
  int max_grey_levels = 0;
  std::optional<AnswerFiles> answers;  ///< none of feature maps, and in early bundles
  std::vector<FileEntry> files;  ///< each once, of all but the manifest, its hash and signature
};

/// Throws InputError for anything that a reader of this version cannot follow.
Manifest parse_manifest(std::string_view text);

}  // namespace cmt
