package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/container"
	"berth/internal/image"
	"berth/internal/oci"
)

// imageCommands are the commands about images that docker has at its root.
func (p *program) imageCommands() []*cobra.Command {
	one := &cobra.Command{Use: "image", Short: "Images: what containers are made of", Example: "  berth image ls\n  berth image prune -a"}
	list, rm := p.imageList("ls"), p.imageRemove("rm")
	list.Aliases, rm.Aliases = []string{"list"}, []string{"remove"}
	one.AddCommand(p.imagePull(), list, rm, p.imageInspect(), p.imagePrune(), p.imageSave(), p.imageLoad(), p.imageImport(), p.imageTag(), p.imageHistory())
	return []*cobra.Command{one, p.imagePull(), p.imageList("images"), p.imageRemove("rmi"), p.imageSave(), p.imageLoad(), p.imageImport(), p.imageTag(), p.imageHistory()}
}

// withImages opens the image store for the length of fn.
func (p *program) withImages(fn func(*image.Store) error) error {
	s, err := p.images()
	if err != nil {
		return err
	}
	return fn(s)
}

// fetch pulls an image and shows how far it is.
func (p *program) fetch(ctx context.Context, s *image.Store, ref, platform string, quiet bool, w io.Writer) error {
	before, err := s.Find(ctx, ref)
	there := err == nil
	o := image.PullOptions{Platform: platform}
	full := image.Full(ref)
	if !quiet {
		repo, tag := image.Split(full)
		fmt.Fprintf(w, "%s: Pulling from %s\n", tag, strings.TrimPrefix(repo, "docker.io/"))
		o.Progress = newProgress(w).tell
	}
	sideBySide()
	img, err := s.Pull(ctx, ref, o)
	if err != nil || quiet {
		return err
	}
	for _, d := range img.RepoDigests {
		if repo, _ := image.Split(full); strings.HasPrefix(d, repo+"@") {
			fmt.Fprintf(w, "Digest: %s\n", strings.TrimPrefix(d, repo+"@"))
		}
	}
	status := "Downloaded newer image for"
	if there && before.ID == img.ID {
		status = "Image is up to date for"
	}
	fmt.Fprintf(w, "Status: %s %s\n", status, image.Short(full))
	return nil
}

func (p *program) imagePull() *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image from a registry", Args: cobra.ExactArgs(1),
		Long: `Pull an image from a registry: busybox is docker.io/library/busybox:latest.
Credentials are those of "docker login" and "podman login". Mirrors of Docker
Hub and registries without https are named in the configuration file.`,
		Example: "  berth pull busybox\n  berth pull registry.example:5000/tools/ci@sha256:…", ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				if err := p.fetch(cmd.Context(), s, args[0], f.platform, f.quiet, p.out); err != nil {
					return err
				}
				p.say(image.Full(args[0]))
				return nil
			})
		},
	}
	platformFlag(cmd, &f.platform)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "only the name")
	refuse(cmd, "pull")
	return cmd
}

// used tells which containers use an image.
func (p *program) used(ctx context.Context, do func(image.Users) error) error {
	return p.containers(ctx, func(s *container.Service) error {
		var failed error
		err := do(func(id string) (names []string) {
			all, err := s.List(ctx)
			if err != nil {
				failed = err
				return []string{"(unknown)"} // who cannot look removes nothing
			}
			for _, c := range all {
				if c.ImageID == id {
					names = append(names, c.Name)
				}
			}
			return names
		})
		return errors.Join(failed, err)
	})
}

func (p *program) imageRemove(use string) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: use + " IMAGE…", Short: "Remove images", Args: cobra.MinimumNArgs(1),
		Long: `Remove images. Of an image with several names the one that is given is taken
away; with the last one the image is removed. One that a container uses is not;
--force takes only its names away.`,
		Example: "  berth image rm busybox", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return p.withImages(func(s *image.Store) error {
				return p.used(ctx, func(by image.Users) error {
					return each(args, func(ref string) error {
						untagged, deleted, err := s.Remove(ctx, ref, force, by)
						for _, n := range untagged {
							p.say("Untagged: " + image.Short(n))
						}
						for _, id := range deleted {
							p.say("Deleted: " + id)
						}
						return err
					})
				})
			})
		},
	}
	if use == "rmi" {
		cmd.Example = "  berth rmi busybox"
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "all its names, also of an image that is used")
	refuse(cmd, "rmi")
	return cmd
}

func (p *program) imagePrune() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the images that have no name", Args: cobra.NoArgs,
		Example: "  berth image prune\n  berth image prune -a",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			return p.withImages(func(s *image.Store) error {
				return p.used(ctx, func(by image.Users) error {
					gone, err := s.Prune(ctx, all, by)
					if len(gone.Untagged)+len(gone.Deleted) > 0 {
						p.say("Deleted Images:")
						for _, n := range gone.Untagged {
							p.say("untagged: " + image.Short(n))
						}
						for _, id := range gone.Deleted {
							p.say("deleted: " + id)
						}
						p.say("")
					}
					p.say("Total reclaimed space: " + decimal(gone.Freed))
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all that no container uses")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "as without: nothing is asked")
	refuse(cmd, "image prune")
	return cmd
}

func (p *program) imageTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image one more name", Args: cobra.ExactArgs(2),
		Example: "  berth tag busybox registry.example:5000/busybox:1", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error { return s.Tag(cmd.Context(), args[0], args[1]) })
		},
	}
}

func (p *program) imageSave() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "save IMAGE…", Short: "Write images into an archive that docker and podman load too", Args: cobra.MinimumNArgs(1),
		Example: "  berth save -o busybox.tar busybox", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				if output == "" {
					if oci.IsTerminal(os.Stdout) {
						return usage(errors.New("an archive is not for a terminal: give --output FILE or redirect it"))
					}
					return s.Save(cmd.Context(), p.out, args)
				}
				// Nobody sees half an archive: it gets its name when it is whole.
				f, err := os.CreateTemp(filepath.Dir(output), ".berth-save-")
				if err != nil {
					return err
				}
				defer os.Remove(f.Name())
				if err := errors.Join(s.Save(cmd.Context(), f, args), f.Close()); err != nil {
					return err
				}
				return os.Rename(f.Name(), output)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `file` (default: standard output)")
	refuse(cmd, "save")
	return cmd
}

func (p *program) imageLoad() *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use: "load", Short: "Read images from an archive of docker save, podman save or skopeo", Args: cobra.NoArgs,
		Example: "  berth load -i busybox.tar\n  berth load <busybox.tar",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withImages(func(s *image.Store) error {
				from := io.Reader(os.Stdin)
				if input != "" {
					f, err := os.Open(input)
					if err != nil {
						return err
					}
					defer f.Close()
					from = f
				} else if oci.IsTerminal(os.Stdin) {
					return usage(errors.New("an archive is wanted: give --input FILE or redirect it"))
				}
				var tell func(image.Event)
				if !quiet {
					tell = newProgress(p.err).tell
				}
				sideBySide()
				names, err := s.Load(cmd.Context(), from, tell)
				for _, n := range names {
					what := "Loaded image: " + image.Short(n)
					if strings.HasPrefix(n, "sha256:") {
						what = "Loaded image ID: " + n
					}
					p.say(what)
				}
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "the `file` (default: standard input)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "without progress")
	refuse(cmd, "load")
	return cmd
}

func (p *program) imageImport() *cobra.Command {
	var changes []string
	var message string
	cmd := &cobra.Command{
		Use: "import FILE|- [NAME]", Short: "Make an image of an archive of a root directory", Args: cobra.RangeArgs(1, 2),
		Example: "  berth import -c 'CMD [\"/bin/sh\"]' root.tar tools:1\n  berth import - tools:2 <root.tar",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				from, name := io.Reader(os.Stdin), ""
				switch {
				case strings.HasPrefix(args[0], "http://"), strings.HasPrefix(args[0], "https://"):
					return usage(fmt.Errorf("%s: nothing is downloaded: 'curl -L URL | berth import -'", quoted(args[0])))
				case args[0] != "-":
					f, err := os.Open(args[0])
					if err != nil {
						return err
					}
					defer f.Close()
					from = f
				}
				if len(args) == 2 {
					name = args[1]
				}
				img, err := s.Import(cmd.Context(), from, name, changes, message)
				if err == nil {
					p.say(img.ID)
				}
				return err
			})
		},
	}
	cmd.Flags().StringArrayVarP(&changes, "change", "c", nil, "an `instruction` of a Dockerfile, as 'CMD [\"sh\"]'")
	cmd.Flags().StringVarP(&message, "message", "m", "", "a `comment` that history shows")
	refuse(cmd, "import")
	return cmd
}

// completeImages offers the names of images.
func (p *program) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	s, err := p.images()
	if err != nil {
		return nil, directive
	}
	all, err := s.List(cmd.Context())
	if err != nil {
		return nil, directive
	}
	var out []string
	for _, img := range all {
		for _, n := range img.Names {
			out = append(out, image.Short(n))
		}
	}
	slices.Sort(out)
	return rest(out, args), directive
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "N/A"
	}
	return ago(now.Sub(t)) + " ago"
}
