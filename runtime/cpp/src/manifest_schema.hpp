#pragma once

namespace cmt {

/// The text of manifest.schema.json, the one declaration of what a manifest holds.
extern const char* const kManifestSchema;

}  // namespace cmt
