package cli

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/engine"
)

const directive = cobra.ShellCompDirectiveNoFileComp

// completeFlag says how the value of a flag is completed.
func completeFlag(cmd *cobra.Command, name string, complete cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // there is no such flag
	}
}

// offer asks the engine for words. Where the store cannot be read there are
// none: nothing is said while somebody types.
func (p *program) offer(cmd *cobra.Command, words func(*engine.Engine) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	var out []string
	err := p.with(cmd.Context(), func(e *engine.Engine) (err error) {
		out, err = words(e)
		return err
	})
	if err != nil {
		return nil, directive
	}
	return out, directive
}

// rest leaves out what was typed already.
func rest(words, typed []string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return slices.Contains(typed, w) })
}

func (p *program) completeNetworks(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.offer(cmd, func(e *engine.Engine) ([]string, error) {
		all, err := e.Networks(cmd.Context())
		var out []string
		for _, n := range all {
			out = append(out, n.Name)
		}
		return rest(out, args), err
	})
}

// completeSandboxes offers the sandboxes that Berth knows.
func (p *program) completeSandboxes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.offer(cmd, func(e *engine.Engine) ([]string, error) {
		all, err := e.Sandboxes(cmd.Context())
		var out []string
		for _, s := range all {
			out = append(out, s.Name)
		}
		return rest(out, args), err
	})
}

// completeNamespaces offers the sandboxes that Berth knows and those it could:
// all names in /run/netns.
func (p *program) completeNamespaces(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	out, _ := p.completeSandboxes(cmd, args, to)
	pinned, err := os.ReadDir(netnsDir)
	if err != nil {
		return out, directive // there are none
	}
	for _, n := range pinned {
		out = append(out, n.Name())
	}
	slices.Sort(out)
	return rest(slices.Compact(out), args), directive
}

// completeSandbox offers sandboxes for the first word.
func (p *program) completeSandbox(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, directive
	}
	return p.completeSandboxes(cmd, args, to)
}

// completeExec offers a sandbox, then leaves it to the shell.
func (p *program) completeExec(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return p.completeNamespaces(cmd, args, to)
}

// completeConnect offers a network, then a sandbox.
func (p *program) completeConnect(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return p.completeNetworks(cmd, args, to)
	case 1:
		return p.completeNamespaces(cmd, nil, to)
	}
	return nil, directive
}

// completeConnected offers a network, then the sandboxes on it.
func (p *program) completeConnected(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return p.completeNetworks(cmd, args, to)
	}
	return p.offer(cmd, func(e *engine.Engine) ([]string, error) {
		n, err := e.InspectNetwork(cmd.Context(), args[0])
		var out []string
		for _, ep := range n.Endpoints {
			out = append(out, ep.SandboxName)
		}
		return rest(out, args[1:]), err
	})
}

// completePublished offers a sandbox, then its published ports as "unpublish"
// takes them: by the host's.
func (p *program) completePublished(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	return p.completePorts(cmd, args, to, func(x engine.PortDetail) uint16 { return x.HostPort })
}

// completePort offers a sandbox, then its published ports as "port" takes
// them: by the sandbox's.
func (p *program) completePort(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, directive
	}
	return p.completePorts(cmd, args, to, func(x engine.PortDetail) uint16 { return x.To.Port() })
}

func (p *program) completePorts(cmd *cobra.Command, args []string, to string, number func(engine.PortDetail) uint16) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return p.completeSandboxes(cmd, args, to)
	}
	return p.offer(cmd, func(e *engine.Engine) ([]string, error) {
		all, err := e.Ports(cmd.Context(), args[0])
		slices.SortFunc(all, func(a, b engine.PortDetail) int { return cmp.Compare(number(a), number(b)) })
		var out []string
		for _, x := range all {
			out = append(out, fmt.Sprintf("%d/%s", number(x), x.Protocol))
		}
		return rest(slices.Compact(out), args[1:]), err
	})
}

// completeOptions offers the options of a network; those of Docker once a
// beginning of them is typed.
func completeOptions(_ *cobra.Command, _ []string, to string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, name := range engine.OptionNames() {
		if !strings.Contains(name, ".") || to != "" {
			out = append(out, name+"=")
		}
	}
	return out, directive | cobra.ShellCompDirectiveNoSpace
}
