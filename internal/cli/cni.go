package cli

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/cni"
)

func (p *program) cni() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cni", Short: "Networks for containerd, nerdctl, Podman, CRI-O and Kubernetes",
		Long: `Networks for container runtimes that speak CNI, the Container Network Interface.
The plugin berth-cni is put where they look for plugins, and a configuration
where they look for networks; a pod that they connect is a sandbox like any
other. docs/cni.md has every key of a configuration.`,
		Example: "  berth cni install\n  berth network create pods\n  berth cni conflist --write pods",
	}
	cmd.AddCommand(p.cniInstall(), p.cniUninstall(), p.cniConflist(), p.cniList())
	return cmd
}

func (p *program) cniInstall() *cobra.Command {
	var dir string
	var force, dropIn bool
	cmd := &cobra.Command{
		Use: "install", Short: "Put the plugin where runtimes look for it", Args: cobra.NoArgs,
		Long: `Put the plugin where runtimes look for it, under the name berth. It is the
program berth-cni beside this one, or else in PATH. A file that is not Berth's
is not replaced without --force. With --drop-in it stands in for the reference
plugins too: links of their names lead to it, and configurations written for
them run unchanged.`,
		Example: "  berth cni install\n  berth cni install --dir /usr/lib/cni\n  berth cni install --drop-in",
		RunE: func(*cobra.Command, []string) error {
			from, err := pluginProgram()
			if err != nil {
				return err
			}
			path, err := cni.Install(from, dir, force)
			if err != nil {
				return err
			}
			p.say(path)
			if !dropIn {
				return nil
			}
			links, err := cni.InstallLinks(dir, force)
			for _, link := range links {
				p.say(link)
			}
			return err
		},
	}
	pluginFlags(cmd, &dir, &force)
	cmd.Flags().BoolVar(&dropIn, "drop-in", false, "also under the names of the reference plugins")
	return cmd
}

// pluginProgram finds berth-cni beside the program that runs, or in PATH.
func pluginProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "berth-cni")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("berth-cni")
	if err != nil {
		return "", fmt.Errorf("find berth-cni beside this program or in PATH: 'make build' makes both: %w", berth.ErrNotFound)
	}
	return path, nil
}

func (p *program) cniUninstall() *cobra.Command {
	var dir string
	var force bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take the plugin away", Args: cobra.NoArgs,
		Long: `Take the plugin away. Pods that are connected stay so, and runtimes can no
longer disconnect them: 'berth sandbox rm' does.`,
		Example: "  berth cni uninstall",
		RunE: func(*cobra.Command, []string) error {
			path, err := cni.Uninstall(dir, force)
			if err == nil {
				p.say(path)
			}
			return err
		},
	}
	pluginFlags(cmd, &dir, &force)
	return cmd
}

func pluginFlags(cmd *cobra.Command, dir *string, force *bool) {
	cmd.Flags().StringVar(dir, "dir", cni.PluginDir, "`directory` of plugins")
	forceFlag(cmd, force)
}

func forceFlag(cmd *cobra.Command, force *bool) {
	cmd.Flags().BoolVarP(force, "force", "f", false, "even a file that is not Berth's")
}

func (p *program) cniConflist() *cobra.Command {
	var dir, version string
	var write, force bool
	cmd := &cobra.Command{
		Use: "conflist NETWORK", Short: "Print or write a configuration for a network", Args: cobra.ExactArgs(1),
		Long: `Print a configuration by which runtimes connect pods to a network, or write it
to where they look for it. One file is for all of them: containerd's CRI takes
the first of the directory, nerdctl (--net), Podman (--network, with the cni
backend), CRI-O and ctr (--cni) take it by name or the first. Runtimes that
speak CNI 1.1 can be given --cni-version 1.1.0: they ask for the state of the
network and collect what is left of dead pods.`,
		Example:           "  berth cni conflist front\n  berth cni conflist --write front",
		ValidArgsFunction: p.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				n, err := e.Network(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				conf, err := cni.Conflist(n.Name, version, cmp.Or(p.root, os.Getenv("BERTH_ROOT")), cmp.Or(p.run, os.Getenv("BERTH_RUN")))
				if err != nil {
					return usage(err)
				}
				if !write {
					_, err = p.out.Write(conf)
					return err
				}
				path, err := cni.WriteConflist(n.Name, conf, dir, force)
				if err == nil {
					p.say(path)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&write, "write", "w", false, "write it, and print the file's name")
	f.StringVar(&dir, "conf-dir", cni.ConfDir, "`directory` of configurations")
	f.StringVar(&version, "cni-version", "1.0.0", "`version` of CNI that the runtime speaks")
	forceFlag(cmd, &force)
	return cmd
}

var cniLayout = layout{
	headings: header{"Kind": "KIND", "Network": "NETWORK", "Path": "PATH"},
	shown:    []string{"Kind", "Network", "Path"}, quiet: "Path",
}

func (p *program) cniList() *cobra.Command {
	var l list
	var dir, confDir string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List what runtimes find of Berth", Args: cobra.NoArgs,
		Example: "  berth cni ls",
		RunE: func(*cobra.Command, []string) error {
			all, err := cni.List(dir, confDir)
			if err != nil {
				return err
			}
			return show(l, p.out, cniLayout, all)
		},
	}
	l.formatFlag(cmd)
	cmd.Flags().BoolVarP(&l.quiet, "quiet", "q", false, "only paths")
	cmd.Flags().StringVar(&dir, "dir", cni.PluginDir, "`directory` of plugins")
	cmd.Flags().StringVar(&confDir, "conf-dir", cni.ConfDir, "`directory` of configurations")
	return cmd
}
