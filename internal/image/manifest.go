package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxLayers is what one mount of an overlay takes: Linux allows 500 lower
// directories.
const maxLayers = 500

// layerTypes are the media types of layers that can be unpacked. Whether one
// is compressed, and how, is seen in its first bytes.
var layerTypes = []types.MediaType{
	types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// parseManifest reads the manifest of an image. What it does not allow is
// refused, and what could be read in two ways is too.
func parseManifest(data []byte, declared types.MediaType) (*v1.Manifest, error) {
	var both struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	bad := func(format string, args ...any) (*v1.Manifest, error) {
		return nil, fmt.Errorf("manifest: %s: %w", clip(fmt.Sprintf(format, args...)), berth.ErrInvalid)
	}
	if err := json.Unmarshal(data, &both); err != nil {
		return bad("%v", err)
	}
	if both.MediaType != "" && both.MediaType != declared {
		return bad("the registry says that it is %s, it says %s itself", declared, both.MediaType)
	}
	if both.Manifests != nil && (both.Layers != nil || both.Config != nil) {
		return bad("it is an image and an index at once")
	}
	if !declared.IsImage() {
		return bad("%s is not the type of an image", declared)
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return bad("%v", err)
	}
	if !m.Config.MediaType.IsConfig() {
		return bad("not an image of a file system: its configuration is %s", m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return bad("%d layers, the most is %d", len(m.Layers), maxLayers)
	}
	if m.Config.Size > maxDocument {
		return bad("a configuration of %d bytes, the most is %d", m.Config.Size, maxDocument)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return bad("%v", err)
		}
		if d.Size < 0 {
			return bad("%s has a size of %d", d.Digest, d.Size)
		}
	}
	for _, d := range m.Layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return bad("a layer of type %s cannot be unpacked", d.MediaType)
		}
	}
	return m, nil
}

// checkDigest refuses digests that cannot be the name of a blob here.
func checkDigest(h v1.Hash) error {
	if h.Algorithm != "sha256" || len(h.Hex) != 64 || strings.Trim(h.Hex, "0123456789abcdef") != "" {
		return fmt.Errorf("digest %q: only sha256 is known", clip(h.String()))
	}
	return nil
}

// parseConfig reads an image's configuration and holds it against the
// manifest.
func parseConfig(data []byte, m *v1.Manifest) (*v1.ConfigFile, error) {
	cf, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %s: %w", m.Config.Digest, clip(err.Error()), berth.ErrInvalid)
	}
	if len(cf.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("configuration %s: it has %d layers, the manifest has %d: %w", m.Config.Digest, len(cf.RootFS.DiffIDs), len(m.Layers), berth.ErrInvalid)
	}
	for _, h := range cf.RootFS.DiffIDs {
		if err := checkDigest(h); err != nil {
			return nil, fmt.Errorf("configuration %s: %w: %w", m.Config.Digest, err, berth.ErrInvalid)
		}
	}
	if cf.OS != "" && cf.OS != "linux" {
		return nil, fmt.Errorf("an image for %s, not for linux: %w", clip(cf.OS), berth.ErrInvalid)
	}
	return cf, nil
}

// platform is what a configuration says it is for.
func platform(cf *v1.ConfigFile) v1.Platform {
	return v1.Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant}
}

// parsePlatform reads linux/arm64/v8, linux/arm64, or arm64 alone; "" is this
// machine.
func parsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(s, "/")
	switch {
	case s == "":
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	case len(parts) > 3 || slices.Contains(parts, ""):
		return v1.Platform{}, fmt.Errorf("platform %q: not OS/ARCHITECTURE, as linux/arm64 is: %w", clip(s), berth.ErrInvalid)
	case len(parts) == 1 && s != "linux":
		parts = []string{"linux", s}
	case len(parts) == 1:
		parts = []string{s, runtime.GOARCH}
	}
	p := v1.Platform{OS: strings.ToLower(parts[0]), Architecture: strings.ToLower(parts[1])}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture = "arm"
	}
	return p, nil
}

// serves is how well an image for have runs where want is wanted: 0 not at
// all, else the greater the better.
func serves(have, want v1.Platform) int {
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return 0
	}
	if have.Variant == want.Variant {
		return 3
	}
	switch {
	case want.Architecture == "arm64" && (want.Variant == "v8" && have.Variant == "" || want.Variant == "" && have.Variant == "v8"):
		return 2
	case want.Variant == "" && want.Architecture == "arm":
		return map[string]int{"v7": 2, "v6": 1, "v5": 1}[have.Variant]
	case want.Variant == "":
		return 1
	case want.Architecture == "arm" && have.Variant != "" && have.Variant < want.Variant, have.Variant == "":
		return 1
	}
	return 0
}

// choose returns the image of an index that serves a platform best.
func choose(data []byte, declared types.MediaType, want v1.Platform) (v1.Descriptor, error) {
	var ambiguous struct {
		MediaType types.MediaType `json:"mediaType"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err == nil {
		err = json.Unmarshal(data, &ambiguous)
	}
	switch {
	case err != nil:
		return v1.Descriptor{}, fmt.Errorf("index: %s: %w", clip(err.Error()), berth.ErrInvalid)
	case ambiguous.MediaType != "" && ambiguous.MediaType != declared:
		return v1.Descriptor{}, fmt.Errorf("index: the registry says that it is %s, it says %s itself: %w", clip(string(declared)), clip(string(ambiguous.MediaType)), berth.ErrInvalid)
	case ambiguous.Layers != nil || ambiguous.Config != nil:
		return v1.Descriptor{}, fmt.Errorf("index: it is an image and an index at once: %w", berth.ErrInvalid)
	}
	var best v1.Descriptor
	most := 0
	var others []string
	for _, d := range x.Manifests {
		if d.Platform == nil {
			d.Platform = &v1.Platform{}
		}
		if n := serves(*d.Platform, want); n > most {
			best, most = d, n
		}
		if s := d.Platform.String(); s != "" && d.Platform.OS != "unknown" {
			others = append(others, s)
		}
	}
	// An index without platforms and with one image is that image.
	if most == 0 && len(x.Manifests) == 1 && len(others) == 0 {
		best, most = x.Manifests[0], 1
	}
	if most == 0 {
		return v1.Descriptor{}, fmt.Errorf("no image for %s, there is %s: %w", want, clip(strings.Join(others, ", ")), berth.ErrNotFound)
	}
	if err := checkDigest(best.Digest); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w: %w", err, berth.ErrInvalid)
	}
	return best, nil
}
