package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"berth"
	"berth/internal/image"
)

// images opens the image store as the flags say.
func (p *program) images() (*image.Store, error) {
	root, err := filepath.Abs(cmp.Or(p.root, os.Getenv("BERTH_ROOT"), "/var/lib/berth"))
	if err != nil {
		return nil, err
	}
	c, err := readConfig(cmp.Or(p.config, os.Getenv("BERTH_CONFIG")))
	if err != nil {
		return nil, err
	}
	return image.Open(image.Options{Dir: filepath.Join(root, "images"), Mirrors: c.Mirrors, Insecure: c.Insecure})
}

// sideBySide lets layers be fetched and unpacked side by side; all else of Berth
// runs on one processor.
func sideBySide() { runtime.GOMAXPROCS(runtime.NumCPU()) }

// layers give containers the files of their images.
type layers struct{ *program }

// find opens the store and finds an image of it.
func (l layers) find(ctx context.Context, id string) (*image.Store, image.Image, error) {
	s, err := l.images()
	if err != nil {
		return nil, image.Image{}, err
	}
	img, err := s.Find(ctx, id)
	return s, img, err
}

func (l layers) Lower(ctx context.Context, id string) ([]string, error) {
	s, img, err := l.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.Lower(img)
}

func (l layers) Copy(ctx context.Context, id, dir string) error {
	s, img, err := l.find(ctx, id)
	if err != nil {
		return err
	}
	return s.Copy(ctx, img, dir)
}

// pullFlags say when and how an image is pulled for a container.
type pullFlags struct {
	pull, platform string
	quiet          bool
}

func (f *pullFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.pull, "pull", "missing", "when the image is pulled: always, missing or never (`policy`)")
	platformFlag(cmd, &f.platform)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "a pull shows nothing")
	completeFlag(cmd, "pull", cobra.FixedCompletions([]cobra.Completion{"always", "missing", "never"}, directive))
}

func platformFlag(cmd *cobra.Command, platform *string) {
	cmd.Flags().StringVar(platform, "platform", "", "what the image is for, as `OS/ARCHITECTURE[/VARIANT]` (default: this machine)")
	completeFlag(cmd, "platform", cobra.NoFileCompletions)
}

// policy refuses what is no policy.
func (f *pullFlags) policy() error {
	switch f.pull {
	case "always", "missing", "never":
		return nil
	}
	return fmt.Errorf("--pull %s: always, missing or never is wanted", quoted(f.pull))
}

// ofImage lets do record a container of an image, which is pulled first if the
// flags say so. Until it is recorded the image is not removed.
func (p *program) ofImage(ctx context.Context, c *berth.Container, f *runFlags, do func() error) error {
	s, err := p.images()
	if err != nil {
		return err
	}
	for pulled := false; ; pulled = true {
		release, err := s.Hold(ctx)
		if err != nil {
			return err
		}
		img, err := s.Find(ctx, c.Image)
		if err == nil && f.platform != "" && !image.Fits(img.Platform, f.platform) {
			err = fmt.Errorf("image %s is here for %s: %w: %w", c.Image, img.Platform, image.ErrNone, berth.ErrNotFound)
		}
		missing := errors.Is(err, image.ErrNone)
		if err == nil && (pulled || f.pull != "always") {
			err = errors.Join(img.Fill(c), f.publishExposed(c))
			if err == nil {
				err = do()
			}
			release()
			return err
		}
		release()
		if err != nil && !missing || pulled || f.pull == "never" {
			return err
		}
		if missing && !f.quiet {
			fmt.Fprintf(p.err, "Unable to find image '%s' locally\n", image.Short(image.Full(c.Image)))
		}
		if err := p.fetch(ctx, s, c.Image, f.platform, f.quiet, p.err); err != nil {
			return err
		}
	}
}

// publishExposed adds the ports of --publish-all that the image names.
func (f *runFlags) publishExposed(c *berth.Container) error {
	if !f.publishAll {
		return nil
	}
	if len(c.Net.Exposed) == 0 {
		return fmt.Errorf("--publish-all: image %s names no ports: give --expose PORT too", c.Image)
	}
	have := map[string]bool{}
	for _, s := range c.Net.Ports {
		have[fmt.Sprintf("%d/%s", s.Port, s.Protocol)] = true
	}
	for _, port := range c.Net.Exposed {
		if have[port] {
			continue
		}
		specs, err := berth.ParsePortSpec(port)
		if err != nil {
			return fmt.Errorf("port %s of image %s: %w", quoted(port), c.Image, err)
		}
		c.Net.Ports = append(c.Net.Ports, specs...)
	}
	return nil
}
