package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth"
)

// Both match [berth.ErrNotFound] too, wherever they are found.
var (
	// ErrNone is that the store has no such image.
	ErrNone = errors.New("no such image here")
	// ErrElsewhere is that the registry has none, or shows it to others only.
	ErrElsewhere = errors.New("the registry has no such image")
)

// Fill adds to a container that is wished for what its image says, where its
// user has said nothing, as Docker does: a command of the user's replaces the
// image's, an entry point drops it, and variables and labels are the user's
// before the image's. Its error matches [berth.ErrInvalid] when nothing says
// what to run.
func (img Image) Fill(c *berth.Container) error {
	c.ImageID = img.ID
	p, say := &c.Process, img.Config
	if len(p.Entrypoint) == 0 {
		if len(p.Command) == 0 {
			p.Command = slices.Clone(say.Cmd)
		}
		p.Entrypoint = slices.Clone(say.Entrypoint)
	}
	// --entrypoint "" is no entry point, not the image's.
	p.Entrypoint = slices.DeleteFunc(p.Entrypoint, func(s string) bool { return s == "" && len(p.Entrypoint) == 1 })
	if len(p.Entrypoint)+len(p.Command) == 0 {
		return fmt.Errorf("image %s says no command: say what to run behind it: %w", c.Image, berth.ErrInvalid)
	}
	p.Env = environment(say.Env, p.Env)
	if p.Dir == "" {
		p.Dir = say.WorkingDir
	}
	if p.User == "" {
		p.User = say.User
	}
	if c.StopSignal == "" {
		c.StopSignal = say.StopSignal
	}
	labels := map[string]string{}
	for k, v := range say.Labels {
		labels[k] = v
	}
	for k, v := range c.Labels {
		labels[k] = v
	}
	if len(labels) > 0 {
		c.Labels = labels
	}
	for v := range say.Volumes {
		if !slices.ContainsFunc(c.Mounts, func(m berth.Mount) bool { return m.Target == v }) {
			c.Volumes = append(c.Volumes, v)
		}
	}
	slices.Sort(c.Volumes)
	for port := range say.ExposedPorts {
		if !strings.Contains(port, "/") {
			port += "/tcp"
		}
		if !slices.Contains(c.Net.Exposed, port) {
			c.Net.Exposed = append(c.Net.Exposed, port)
		}
	}
	slices.Sort(c.Net.Exposed)
	return nil
}

// environment are the image's variables, unless they are set again, and then
// the user's.
func environment(image, user []string) []string {
	var env []string
	for _, v := range image {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(user, func(u string) bool { n, _, _ := strings.Cut(u, "="); return n == name }) {
			env = append(env, v)
		}
	}
	return append(env, user...)
}

// Sizes are the bytes of the files of each of an image's layers, lowest first.
func (s *Store) Sizes(img Image) []int64 {
	var sizes []int64
	for _, l := range img.Layers {
		_, hex, _ := strings.Cut(l, ":")
		sizes = append(sizes, s.layerSize(hex))
	}
	return sizes
}

// Fits reports whether an image for one platform runs where another is wanted.
// What is no platform fits nowhere.
func Fits(have, want string) bool {
	h, err1 := parsePlatform(have)
	w, err2 := parsePlatform(want)
	return err1 == nil && err2 == nil && serves(h, w) > 0
}

// Full returns a name as the store keeps it, or the text itself if it is none:
// busybox as docker.io/library/busybox:latest.
func Full(s string) string {
	r, err := parse(s)
	if err != nil {
		return s
	}
	return r.String()
}

// Same reports whether two words name one image.
func Same(a, b string) bool { return Full(a) == Full(b) }

// Split cuts a name into its repository and its tag, or its digest.
func Split(name string) (repo, tag string) {
	if repo, digest, ok := strings.Cut(name, "@"); ok {
		return repo, digest
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, "latest"
}
