package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"

	"github.com/spf13/cobra"
)

// functions are those of Docker's templates.
var functions = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return strings.TrimSpace(b.String()), err
	},
	"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
	"title": func(s string) string {
		if s == "" {
			return s
		}
		return strings.ToUpper(s[:1]) + s[1:]
	},
	"pad": func(s string, before, after int) string {
		if s == "" {
			return s
		}
		return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
	},
	"truncate": func(s string, n int) string {
		if n >= 0 && len(s) > n {
			return s[:n]
		}
		return s
	},
	"println": fmt.Sprintln,
}

// A list is how rows are shown. Columns are field names of a row, with their
// headings.
type list struct {
	format  string
	quiet   bool
	noTrunc bool
	filters []string
}

func (l *list) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.format, "format", "", `"table", "json", "table TEMPLATE" or a Go template`)
	f.BoolVarP(&l.quiet, "quiet", "q", false, "only ids or names")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "whole ids")
	f.StringArrayVarP(&l.filters, "filter", "f", nil, "only what matches KEY=VALUE")
}

// A column is a heading and the field of a row below it.
type column struct{ heading, field string }

// show prints rows: structs whose fields are strings.
func show[T any](l list, w io.Writer, columns []column, rows []T) error {
	format := l.format
	if l.quiet {
		format = "{{." + quietField[T]() + "}}"
	}
	switch {
	case format == "json":
		for _, r := range rows {
			s, err := functions["json"].(func(any) (string, error))(r)
			if err != nil {
				return err
			}
			fmt.Fprintln(w, s)
		}
		return nil
	case format == "" || format == "table":
		var heads, fields []string
		for _, c := range columns {
			heads, fields = append(heads, c.heading), append(fields, "{{."+c.field+"}}")
		}
		return table(w, strings.Join(heads, "\t"), strings.Join(fields, "\t"), rows)
	case strings.HasPrefix(format, "table "):
		text := strings.ReplaceAll(strings.TrimPrefix(format, "table "), `\t`, "\t")
		return table(w, headings(text, columns), text, rows)
	}
	t, err := parse(strings.ReplaceAll(format, `\t`, "\t"))
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := execute(t, w, r); err != nil {
			return err
		}
	}
	return nil
}

func quietField[T any]() string {
	if _, ok := reflect.TypeFor[T]().FieldByName("ID"); ok {
		return "ID"
	}
	return "Name"
}

// headings puts the heading of each field in place of the field.
func headings(text string, columns []column) string {
	for _, c := range columns {
		text = strings.ReplaceAll(text, "{{."+c.field+"}}", c.heading)
	}
	return strings.ToUpper(text)
}

func table[T any](w io.Writer, heading, text string, rows []T) error {
	t, err := parse(text)
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	fmt.Fprintln(tw, heading)
	for _, r := range rows {
		if err := execute(t, tw, r); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func parse(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(functions).Parse(text)
	if err != nil {
		return nil, usage(fmt.Errorf("--format: %s", strings.TrimPrefix(err.Error(), "template: :1: ")))
	}
	return t, nil
}

func execute(t *template.Template, w io.Writer, v any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return usage(fmt.Errorf("--format: %w", err))
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// inspect prints values as one JSON array, or each by a template.
func inspect[T any](w io.Writer, format string, values []T) error {
	if format != "" && format != "json" {
		t, err := parse(format)
		if err != nil {
			return err
		}
		for _, v := range values {
			if err := execute(t, w, v); err != nil {
				return err
			}
		}
		return nil
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if format == "" {
		e.SetIndent("", "    ")
	}
	return e.Encode(values)
}

// matchAll reports whether a row passes filters KEY=VALUE: several of one key
// are alternatives (labels are not), keys are joined.
func matchAll(filters []string, known map[string]func(value string) bool) (bool, error) {
	passed := map[string]bool{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		match, exists := known[key]
		if !ok || !exists {
			var names []string
			for k := range known {
				names = append(names, k)
			}
			slices.Sort(names)
			return false, usage(fmt.Errorf("--filter %s: KEY=VALUE is wanted, with a KEY of %s", f, strings.Join(names, ", ")))
		}
		hit := match(value)
		if was, seen := passed[key]; seen && key == "label" {
			hit = was && hit
		} else if seen {
			hit = was || hit
		}
		passed[key] = hit
	}
	for _, hit := range passed {
		if !hit {
			return false, nil
		}
	}
	return true, nil
}

// hasLabel matches KEY or KEY=VALUE.
func hasLabel(labels map[string]string, want string) bool {
	key, value, with := strings.Cut(want, "=")
	v, ok := labels[key]
	return ok && (!with || v == value)
}

// keyValues turns K=V words into a map.
func keyValues(flag string, words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if k == "" {
			return nil, usage(fmt.Errorf("--%s %q: KEY=VALUE is wanted", flag, w))
		}
		out[k] = v
	}
	return out, nil
}

// labelsText is labels as Docker lists them.
func labelsText(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func short(id string, whole bool) string {
	if whole || len(id) < 12 {
		return id
	}
	return id[:12]
}
