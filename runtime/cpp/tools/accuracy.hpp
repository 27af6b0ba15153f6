#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../src/backend.hpp"

namespace cmt::tools {

/// A file that is asked.
struct Asked {
  const Artefact* artefact;
  std::shared_ptr<const Model> model;
};

/// What came of it, as the report has it.
struct Answered {
  nlohmann::ordered_json images;             ///< of the machine's entry
  std::vector<nlohmann::ordered_json> rows;  ///< what each file's row has, its `reasons` too
  std::vector<std::string> remarks;          ///< lines for people on images that were not used
};

/// Which images files are asked, and how.
struct Question {
  std::filesystem::path folder;  ///< class/name.jpg, images alone, or IDX files
  std::size_t count = 0;         ///< of images; 0 takes all
  int threads = 0;               ///< of the FP32 file, for images that torch did not answer
  std::string run;               ///< everything else that decides what is answered
};

/// The accuracy of files on this machine, one image in memory at a time but for those of IDX files,
/// as measure/device_rows.py has it but for the images that changed sides. A run that was killed
/// goes on where it was. Throws InputError for a folder of no class, without a readable image, or
/// where a file answers with something else than numbers.
Answered measure_accuracy(const Bundle& bundle, const Question& question,
                          const std::vector<Asked>& files);

}  // namespace cmt::tools
