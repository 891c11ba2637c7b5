package image

import (
	"fmt"
	"strings"

	"berth"

	"github.com/google/go-containerregistry/pkg/name"
)

// hub is Docker Hub as its users write it; the library calls it by its host.
const hub = "docker.io"

// A reference is an image's name: registry, repository, and a tag or a digest.
type reference struct {
	registry string // docker.io, or a host with or without a port
	path     string // library/busybox
	tag      string // "" if it has a digest only
	digest   string // sha256:…, or ""
}

// parse reads a name as Docker does: busybox is
// docker.io/library/busybox:latest.
func parse(s string) (reference, error) {
	bad := func(why string) (reference, error) {
		return reference{}, fmt.Errorf("image name %q: %s: %w", clip(s), why, berth.ErrInvalid)
	}
	rest, opts := s, []name.Option(nil)
	if strings.HasPrefix(s, "localhost/") { // a registry to Docker, a user of Docker Hub to the library
		rest, opts = strings.TrimPrefix(s, "localhost/"), append(opts, name.WithDefaultRegistry("localhost"))
	}
	rest, digest, digested := strings.Cut(rest, "@")
	r := reference{digest: digest}
	if digested {
		d, err := name.NewDigest(rest+"@"+digest, opts...)
		if err != nil {
			return bad("not a name with a digest, as busybox@sha256:… is")
		}
		if !strings.HasPrefix(digest, "sha256:") {
			return bad("only digests of sha256 are known")
		}
		r.registry, r.path = d.RegistryStr(), d.RepositoryStr()
		if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
			r.tag = rest[i+1:]
		}
	} else {
		t, err := name.NewTag(rest, opts...)
		if err != nil {
			return bad("not a name, as busybox, busybox:1.36 and registry.example:5000/tools/busybox are")
		}
		r.registry, r.path, r.tag = t.RegistryStr(), t.RepositoryStr(), t.TagStr()
	}
	for part := range strings.SplitSeq(r.path, "/") {
		if part == "" || strings.Trim(part[:1]+part[len(part)-1:], "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return bad("between two slashes is a word that begins and ends with a small letter or a digit")
		}
	}
	if strings.HasSuffix(r.registry, ":") {
		return bad("the registry has no port after the colon")
	}
	if r.registry == name.DefaultRegistry {
		r.registry = hub
	}
	return r, nil
}

// repo is the name without tag and digest.
func (r reference) repo() string { return r.registry + "/" + r.path }

// String is the full name under which the store keeps the image. A digest
// wins over a tag: what the tag says may change, and was not asked for.
func (r reference) String() string {
	if r.digest != "" {
		return r.repo() + "@" + r.digest
	}
	return r.repo() + ":" + r.tag
}

// Short returns a full name as its user would type it:
// docker.io/library/busybox:latest as busybox:latest.
func Short(full string) string {
	s, ok := strings.CutPrefix(full, hub+"/")
	if !ok {
		return full
	}
	if rest, ok := strings.CutPrefix(s, "library/"); ok && !strings.Contains(rest, "/") {
		return rest
	}
	return s
}

// clip makes what others sent fit for one line of a terminal.
func clip(s string) string {
	const most = 300
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd }), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
